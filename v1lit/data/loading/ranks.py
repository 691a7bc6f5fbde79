"""`Ranks`: the processes that train together, and what they tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Ranks:
    """The processes that train together."""

    size: int = 1
    group: dist.ProcessGroup | None = None
    """Over the CPU, so that an exchange never waits for a GPU."""

    @classmethod
    def of(cls, world_size: int) -> Ranks:
        """All ranks of a run; to be called on each of them. Raises ValueError where they cannot talk."""
        if world_size == 1:
            return cls()
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                f"trainer runs on {world_size} ranks without torch.distributed; v1lit needs a strategy that "
                "uses it, such as ddp"
            )
        return cls(world_size, _cpu_group(dist.group.WORLD))

    def add_up(self, table: Tensor) -> Tensor:
        """The sum over ranks, on the CPU; waits for them."""
        if self.group is not None:
            dist.all_reduce(table, group=self.group)
        return table

    def gather(self, own: Any) -> list[Any]:
        """What every rank has, in their order, on all of them; waits for them."""
        if self.group is None:
            return [own]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, own, group=self.group)
        return everyone


@lru_cache(maxsize=1)
def _cpu_group(world: object) -> dist.ProcessGroup:
    """A gloo group of the same processes, made once for every `world`."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # every rank is in it
    return group
