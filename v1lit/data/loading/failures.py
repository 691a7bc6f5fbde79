"""`FailureLog`: notes which examples could not be used, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

from v1lit.data.errors import ShardError
from v1lit.data.example import ExampleRef
from v1lit.data.loading.context import LoaderContext
from v1lit.data.loading.micro_batch import Failure, MicroBatch
from v1lit.data.loading.skips import Skipped
from v1lit.data.loading.step import StepBatches

NOWHERE = ExampleRef(-1, -1, -1, -1)
"""Of a whole shard whose examples were never counted."""


class FailureLog:
    """Notes in the run's `SkipList` what the batches of a loader say of the data, the same on all ranks.

    Args:
        context: of the loader.
        split: `train` or `val`.
        lost: shards that planning finds to be unusable; they are taken out of this list.
    """

    def __init__(self, context: LoaderContext, split: str, lost: list[ShardError] | None = None) -> None:
        self.skips, self.ranks, self.split = context.skips, context.ranks, split
        self._lost = [] if lost is None else lost
        self._in_a_row = 0

    def with_lost(self, micro_batch: MicroBatch) -> MicroBatch:
        """The same with the shards that planning has found to be unusable since this was last called."""
        lost = self._take_lost()
        return replace(micro_batch, failures=(*lost, *micro_batch.failures)) if lost else micro_batch

    def _take_lost(self) -> list[Failure]:
        """Shards found to be unusable since the last call; none but on rank 0: every rank finds the same."""
        lost, self._lost[:] = list(self._lost), []
        return [Failure(NOWHERE, e.shard, e.key, e.kind, e.reason) for e in lost if self.ranks.own == 0]

    def note_step(self, step: StepBatches, epoch: int, index: int) -> None:
        """Note what the optimizer step `index` of an epoch says of the data. Raises BadDataError."""
        if step.failures:  # all ranks know, so all of them tell each other
            self.note(step.micro_batches, epoch, index)
            return
        failures = chain.from_iterable(micro_batch.failures for micro_batch in step.micro_batches)
        self._in_a_row, _ = run_of_failures(failures, self._in_a_row)
        self.skips.note(step.examples, [], 0, step.left_out)

    def note(self, micro_batches: Sequence[MicroBatch], epoch: int, index: int) -> None:
        """Note what became of batches on all ranks, each of which must call it. Raises BadDataError.

        Shards that planning has found to be unusable, and that are in none of the batches, come first.

        Args:
            micro_batches: of this rank.
            epoch, index: the epoch, and the step in it; in validation the batch.
        """
        failures = [*self._take_lost(), *chain.from_iterable(batch.failures for batch in micro_batches)]
        self._in_a_row, longest = run_of_failures(failures, self._in_a_row)
        place = self.split, epoch, index
        skipped = [
            Skipped(*place, f.ref.epoch_index, f.shard, f.key, f.ref.index, f.kind, f.reason)
            for f in failures
            if f is not None
        ]
        read = sum(len(micro_batch.batch) for micro_batch in micro_batches) + len(skipped)
        left_out = sum(micro_batch.left_out for micro_batch in micro_batches)
        reads, skips, longests, left_outs = zip(
            *self.ranks.gather((read, skipped, longest, left_out)), strict=True
        )
        self.skips.note(sum(reads), [*chain.from_iterable(skips)], max(longests), sum(left_outs))


def run_of_failures(failures: Iterable[Failure | None], before: int) -> tuple[int, int]:
    """Failures in a row at the end, and at most, where there were `before` just before these examples."""
    longest = run = before
    for failure in failures:
        run = 0 if failure is None else run + 1
        longest = max(longest, run)
    return run, longest
