"""Batches of one optimizer step, and what all ranks must know of each other before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice

import torch
from torch import Tensor
from torch import distributed as dist

from v1lit.data.batch import Batch

BATCHES, EXAMPLES, COUNTS = 0, 1, slice(2, 5)
"""Columns of the table that ranks add up: one row per batch of the window."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train together."""

    number: int = 1
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


@lru_cache(maxsize=1)
def _cpu_group(world: object) -> dist.ProcessGroup:
    """A gloo group of the same processes, made once for every `world`."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # every rank is in it
    return group


@dataclass(frozen=True)
class Window:
    """Batches of one rank that are accumulated into one optimizer step."""

    batches: list[Batch]
    examples: int
    """In the same batches of all ranks."""

    def pinned(self) -> Window:
        """The same with the counts in page-locked memory, as the rest of a batch."""
        sums = self.batches[0].step_sums
        assert sums is not None
        shared = sums.pin_memory()
        return replace(self, batches=[replace(batch, step_sums=shared) for batch in self.batches])


def windows(
    batches: Iterable[Batch],
    accumulate: Callable[[], int],
    ranks: Ranks,
    start: int = 0,
    whole: bool = False,
    limit: float = math.inf,
) -> Iterator[Window]:
    """Put `accumulate()` batches into one window and tell each of them the label counts of the whole step.

    All ranks end together: the last window has only as many batches as every rank still has, or is left out
    if that is fewer than `accumulate()` and only `whole` windows are wanted. The first `start` batches, used
    before a run was resumed, are in no sum, but in their windows: those stay where they were. No more than
    `limit` batches are used.
    """
    source, first = iter(batches), 0
    while True:
        size = accumulate()
        here = list(islice(source, int(min(size, limit - first))))
        table = ranks.add_up(_table(here, size))
        common = int((table[:, BATCHES] == ranks.number).sum())
        if common == 0 or (whole and common < size):
            return
        sums = table[max(0, start - first) : common, COUNTS].sum(0)
        complete = [replace(batch, step_sums=sums, step_parts=size * ranks.number) for batch in here[:common]]
        yield Window(complete, int(table[:common, EXAMPLES].sum()))
        if common < size:
            return
        first += size


def _table(batches: Sequence[Batch], size: int) -> Tensor:
    """int64 `[size, 5]`: one row per batch with 1, its examples and its label counts; zeros for none."""
    table = torch.zeros(size, 5, dtype=torch.int64)
    for row, batch in enumerate(batches):
        assert batch.counts is not None, "the training loader counts labels"
        table[row] = torch.tensor([1, len(batch), *batch.counts])
    return table
