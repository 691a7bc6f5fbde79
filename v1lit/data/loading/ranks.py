"""`Ranks`: the processes that train together, and what they tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lightning import Trainer
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Ranks:
    """The processes that train together."""

    size: int = 1
    own: int = 0
    """Which of them this one is."""
    group: dist.ProcessGroup | None = None
    """Over the CPU, so that an exchange never waits for a GPU."""

    @classmethod
    def of(cls, trainer: Trainer | None) -> Ranks:
        """All ranks of a run; to be called on each of them. Raises ValueError where they cannot talk."""
        if trainer is None or trainer.world_size == 1:
            return cls()
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                f"trainer runs on {trainer.world_size} ranks without torch.distributed; v1lit needs a "
                "strategy that uses it, such as ddp"
            )
        return cls(trainer.world_size, trainer.global_rank, _cpu_group(dist.group.WORLD))

    def add_up(self, table: Tensor) -> Tensor:
        """The sum over ranks, on the CPU; waits for them."""
        if self.group is not None:
            dist.all_reduce(table, group=self.group)
        return table

    def largest(self, table: Tensor) -> Tensor:
        """The largest of every element over ranks, on the CPU; waits for them."""
        if self.group is not None:
            dist.all_reduce(table, dist.ReduceOp.MAX, group=self.group)
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
