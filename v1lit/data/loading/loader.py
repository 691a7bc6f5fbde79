"""`TrainLoader`: workers make batches of a plan's rows, those of an optimizer step together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from v1lit.data.encode.batch import Batch
from v1lit.data.loading.micro_batch import MicroBatch
from v1lit.data.loading.prefetch import ShardPrefetcher
from v1lit.data.loading.reading import MicroBatchReader
from v1lit.data.loading.state import ReadingState
from v1lit.data.loading.step_count import EpochSteps
from v1lit.data.loading.step_loader import StepLoader
from v1lit.data.sampling.epoch import Progress


class TrainLoader(StepLoader):
    """The batches of a plan, from where the run has come.

    Args:
        steps: the rows of an epoch, and how many steps they make.
        reader: makes a row's batch.
        reading: says where to begin.
    """

    def __init__(self, steps: EpochSteps, reader: MicroBatchReader, reading: ReadingState) -> None:
        super().__init__(steps.context, reader.encoder.blank, steps.opened.lost)
        self.steps, self.reader, self.reading = steps, reader, reading

    def __len__(self) -> int:
        """Batches per epoch on every rank.

        Raises TypeError where that is not known before it is read, and ValueError where it is none.
        """
        batches = self.steps.batches()
        if batches is None:
            why = "is not known" if self.steps.opened.indexed else "is not known without an index"
            raise TypeError(f"how many batches an epoch has {why} before it ends")
        return batches

    def __iter__(self) -> Iterator[Batch]:
        steps, ranks, length = self.steps, self.context.ranks, self.steps.opened.sequence.length
        progress = self.reading.begin(self.context.current_epoch, steps.layout, length, ranks)
        left, index = steps.left(progress), progress.steps
        batches, done = self._micro_batches(progress), steps.batches_done(progress)
        with self._prefetcher(progress) as prefetcher:
            for index, step in self._iter_steps(progress, batches, done, left):
                rows = [batch.row for batch in step.micro_batches if batch.row is not None]
                prefetcher.reached(max((ref.epoch_index for row in rows for ref in row.refs), default=-1))
                if left is not None and index + 1 == progress.steps + left:
                    self._report(progress)  # now: nobody asks for more batches
                yield from self._batches(step, progress.epoch)
        if not steps.opened.indexed:  # the last shards of all may be damaged ones
            self.failures.note([], progress.epoch, index)
        if left is None:
            self._report(progress)

    def _micro_batches(self, progress: Progress) -> Iterator[MicroBatch]:
        for row, micro_batch in self.context.workers.run(self.reader, self.steps.rows(progress)):
            yield self.failures.with_lost(replace(micro_batch, row=row))

    def _prefetcher(self, progress: Progress) -> ShardPrefetcher:
        ranks, window = self.context.ranks, self.context.stream.shuffle_window
        # What remains of an epoch is dealt out from its first index on, which may be any.
        first = (ranks.own + progress.remaining.tail - len(progress.remaining.head)) % ranks.size
        epoch = self.context.order_of(progress.epoch)
        return ShardPrefetcher(self.steps.opened, epoch, first, ranks.size, window)

    def _report(self, progress: Progress) -> None:
        """Say what an epoch has left over.

        Raises ValueError or BadDataError where nothing was used: it would never end.
        """
        trainer, skips, total = self.context.trainer, self.context.skips, self.steps.opened.sequence.examples
        if progress.steps:
            return
        if not self.used:
            self._refuse_nothing(self.steps.too_few())
        whole = trainer is None or trainer.limit_train_batches in (None, 1.0)
        if self.context.drops_tail and whole and total is not None:
            skipped = sum(skip.split == "train" and skip.epoch == progress.epoch for skip in skips.skipped)
            left = total - self.used - self.left_out - skipped
            if left > 0:
                rank_zero_info(
                    f"epoch {progress.epoch}: {left} of {total} training examples are left over, others "
                    "each time: they do not make a whole optimizer step of "
                    f"{self.steps.layout.micro_batches} batches"
                )
