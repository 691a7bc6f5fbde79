"""Batches of one optimizer step, and what all ranks must know of each other before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from v1lit.data.encode.batch import Batch
from v1lit.data.loading.context import LoaderContext
from v1lit.data.loading.micro_batch import MicroBatch


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
    context: LoaderContext,
    blank: Callable[[], Batch],
    *,
    steps: int | None = None,
    first: int = 0,
) -> Iterator[StepBatches]:
    """Put batches that are accumulated into one step and tell each the label counts of the whole step.

    All ranks have the same steps, and all steps are whole: where a rank has no batch left, a blank one
    stands. Where the map has left out more examples behind the last step, a step without batches says so.

    Args:
        micro_batches: of this rank.
        context: the run, all of whose ranks iterate together.
        blank: makes a batch without examples.
        steps: how many; None for until no rank has a batch left or, where tails are dropped, a whole step.
        first: batches of the epoch that were used before; these count for the limit of the context, for which
            the last step may be smaller.
    """
    source, step, size, ranks = iter(micro_batches), 0, context.accumulate, context.ranks
    while steps is None or step < steps:
        wanted = int(min(size, context.limit - first))
        own = list(islice(source, max(0, wanted)))
        table = ranks.add_up(_table(own, size))
        rows, failed, used, left_out = table[:, :4].sum(0).tolist()
        least = wanted * ranks.size if context.drops_tail else 1
        if wanted <= 0 or (steps is None and rows < least):
            if left_out and not rows:
                yield StepBatches([], [], 0, 0, left_out)
            return
        own += [MicroBatch(blank(), ()) for _ in range(wanted - len(own))]
        sums = table[:, 4:].sum(0)
        per_step = size * ranks.size
        batches = [replace(m.batch, step_sums=sums, micro_batches_per_step=per_step) for m in own]
        yield StepBatches(own, batches, used, failed, left_out)
        step, first = step + 1, first + wanted


def heaviest_first(work: Sequence[float]) -> list[int]:
    """Places of a rank's batches of one step in the order in which they are computed: most work first.

    Where a model is sharded, ranks meet in every layer, so a batch takes as long as that of the rank with
    most work. With the batches of every rank in order of work, the sum of these largest over the step is the
    least of all orders, whatever the other ranks have, and no rank has to ask. Gradients are summed over the
    step, so its order changes nothing but rounding.
    """
    return sorted(range(len(work)), key=lambda place: (-work[place], place))


def _table(micro_batches: Sequence[MicroBatch], size: int) -> Tensor:
    """What the ranks add up: int64 `[size, 7]`, a row per batch, zeros for one that is missing or blank.

    Columns: whether it is filled, its failures, examples, those that the map left out, and its label counts.
    """
    table = torch.zeros(size, 7, dtype=torch.int64)
    for row, micro_batch in enumerate(micro_batches):
        batch, failures = micro_batch.batch, micro_batch.failures
        assert batch.counts is not None, "the training loader counts labels"
        failed = sum(failure is not None for failure in failures)
        table[row] = torch.tensor(
            [micro_batch.filled, failed, len(batch), micro_batch.left_out, *batch.counts]
        )
    return table
