"""Batches of one optimizer step, and what all ranks must know of each other before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from v1lit.data.encode.batch import Batch
from v1lit.data.loading.micro_batch import MicroBatch
from v1lit.data.loading.ranks import Ranks

ROWS, FAILURES, EXAMPLES, LEFT_OUT, COUNTS = 0, 1, 2, 3, slice(4, 7)
"""Columns of the table that ranks add up: one row per micro-batch of the step."""


@dataclass(frozen=True)
class StepBatches:
    """Batches of one rank that are accumulated into one optimizer step."""

    micro_batches: list[MicroBatch]
    batches: list[Batch]
    examples: int
    """In the same step on all ranks."""
    failures: int
    """Examples of the step that could not be used, on all ranks."""
    left_out: int = 0
    """Examples that the map has left out, on all ranks."""

    def pinned(self) -> StepBatches:
        """The same with the counts in page-locked memory, as the rest of a batch."""
        if not self.batches:
            return self
        sums = self.batches[0].step_sums
        assert sums is not None
        shared = sums.pin_memory()
        return replace(self, batches=[replace(batch, step_sums=shared) for batch in self.batches])


def iter_steps(
    micro_batches: Iterable[MicroBatch],
    size: int,
    ranks: Ranks,
    blank: Callable[[], Batch],
    *,
    steps: int | None = None,
    drop: bool = False,
    first: int = 0,
    limit: float = math.inf,
) -> Iterator[StepBatches]:
    """Put `size` batches into one step and tell each of them the label counts of the whole step.

    All ranks have the same steps, and all steps are whole: where a rank has no batch left, a blank one
    stands. Without a known number of `steps` they go on until no rank has any; with `drop` until one has not
    enough. Batches from number `limit` on, counted from `first`, are not read: the last step may be small.
    Where the map has left out more examples behind the last one, a step without batches says how many.
    """
    source, step = iter(micro_batches), 0
    while steps is None or step < steps:
        wanted = int(min(size, limit - first))
        here = list(islice(source, max(0, wanted)))
        table = ranks.add_up(_table(here, size))
        rows = int(table[:, ROWS].sum())
        left_out = int(table[:, LEFT_OUT].sum())
        if wanted <= 0 or (steps is None and (rows == 0 or (drop and rows < wanted * ranks.size))):
            if left_out and not rows:
                yield StepBatches([], [], 0, 0, left_out)
            return
        here += [MicroBatch(blank(), ()) for _ in range(wanted - len(here))]
        sums = table[:, COUNTS].sum(0)
        batches = [
            replace(one.batch, step_sums=sums, micro_batches_per_step=size * ranks.size) for one in here
        ]
        used, failed = int(table[:, EXAMPLES].sum()), int(table[:, FAILURES].sum())
        yield StepBatches(here, batches, used, failed, left_out)
        step, first = step + 1, first + wanted


def _table(micro_batches: Sequence[MicroBatch], size: int) -> Tensor:
    """int64 `[size, 7]`, a row per batch: 1, failures, examples, those that the map leaves out, label counts;
    zeros for a blank one."""
    table = torch.zeros(size, 7, dtype=torch.int64)
    for row, one in enumerate(micro_batches):
        assert one.batch.counts is not None, "the training loader counts labels"
        failed = sum(failure is not None for failure in one.failures)
        table[row] = torch.tensor([one.filled, failed, len(one.batch), one.left_out, *one.batch.counts])
    return table
