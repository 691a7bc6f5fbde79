"""`Ranks`: the processes that train together, which data each reads, and what they tell each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from torch import distributed as dist


@dataclass
class Waiting:
    """How long this process has waited for others in exchanges over the CPU."""

    seconds: float = 0.0


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, counted by the data that they read."""

    size: int = 1
    """Ranks that read data of their own."""
    own: int = 0
    """Which of them this one is."""
    alike: int = 1
    """Processes, one behind another, that read the same and compute it together: they count as one rank."""
    group: dist.ProcessGroup | None = None
    """Over the CPU, so that an exchange never waits for a GPU."""
    waiting: Waiting = field(default_factory=Waiting, compare=False)
    """Of all exchanges of this process in the group."""

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
        readers = cls.readers(trainer)
        alike = trainer.world_size // readers
        return cls(readers, trainer.global_rank // alike, alike, *_cpu_group(dist.group.WORLD))

    @staticmethod
    def readers(trainer: Trainer) -> int:
        """How many processes of a run read data of their own."""
        # Every strategy of Lightning's that is distributed says so.
        told: dict[str, int] = getattr(trainer.strategy, "distributed_sampler_kwargs", {})
        return told.get("num_replicas", trainer.world_size)

    def add_up(self, table: Tensor) -> Tensor:
        """The sum over ranks, on the CPU; waits for them.

        Raises RuntimeError where processes that read the same have different ones.
        """
        if self.alike == 1:
            return self.add_up_processes(table)
        every = [torch.empty_like(table) for _ in range(self.size * self.alike)]
        with self._timed():
            dist.all_gather(every, table, group=self.group)
        tables = torch.stack(every).unflatten(0, (self.size, self.alike))
        if not bool((tables == tables[:, :1]).all()):
            raise RuntimeError(
                "processes that compute the same batches together have read different ones: shards differ "
                "between them, or one of them could not read what others could"
            )
        return tables[:, 0].sum(0)

    def add_up_processes(self, table: Tensor) -> Tensor:
        """The sum over all processes, on the CPU; waits for them."""
        if self.group is not None:
            with self._timed():
                dist.all_reduce(table, group=self.group)
        return table

    def largest(self, table: Tensor) -> Tensor:
        """The largest of every element over all processes, on the CPU; waits for them."""
        if self.group is not None:
            with self._timed():
                dist.all_reduce(table, dist.ReduceOp.MAX, group=self.group)
        return table

    def gather(self, own: Any) -> list[Any]:
        """What every rank has, in their order, on all of them; waits for them."""
        return self.gather_processes(own)[:: self.alike]

    def gather_processes(self, own: Any) -> list[Any]:
        """What every process has, in their order, on all of them; waits for them."""
        if self.group is None:
            return [own]
        everyone: list[Any] = [None] * (self.size * self.alike)
        with self._timed():
            dist.all_gather_object(everyone, own, group=self.group)
        return everyone

    def table(self, own: list[float]) -> Tensor:
        """Numbers of every process, float64 `[processes, numbers]`, on all of them; waits for them."""
        table = torch.zeros(self.size * self.alike, len(own), dtype=torch.float64)
        table[0 if self.group is None else dist.get_rank(self.group)] = torch.tensor(own, dtype=torch.float64)
        return self.add_up_processes(table)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():  # a checkpoint is written beside it
                self.waiting.seconds += time.perf_counter() - begin


@lru_cache(maxsize=1)
def _cpu_group(world: object) -> tuple[dist.ProcessGroup, Waiting]:
    """A gloo group of the same processes, made once for every `world`, and how long it was waited in."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # every rank is in it
    return group, Waiting()
