"""`ValLoader`: all validation examples, in their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from v1lit.data.encode.batch import Batch
from v1lit.data.loading.context import LoaderContext
from v1lit.data.loading.failures import FailureLog
from v1lit.data.loading.micro_batch import MicroBatch
from v1lit.data.loading.reading import MicroBatchReader
from v1lit.data.loading.sequence import OpenedSequence
from v1lit.data.loading.workers import Workers
from v1lit.data.sampling.epoch import Progress, StepLayout, rank_rows
from v1lit.data.sampling.rows import counted_rows


class ValLoader:
    """All validation examples in order, split over the ranks, which have equally many batches.

    Args:
        opened: the examples.
        reader: makes a row's batch.
        size: examples per batch.
        context: the run that it serves.
    """

    def __init__(
        self, opened: OpenedSequence, reader: MicroBatchReader, size: int, context: LoaderContext
    ) -> None:
        self.opened, self.reader, self.size, self.context = opened, reader, size, context

    def __len__(self) -> int:
        """Batches on every rank."""
        length = self.opened.sequence.length
        assert length is not None
        return -(-length // (self.size * self.context.ranks.size))

    def __iter__(self) -> Iterator[Batch]:
        ranks = self.context.ranks
        progress = Progress(layout=StepLayout(ranks.size, f"{self.size} examples"))
        make_rows = partial(counted_rows, size=self.size)
        rows = rank_rows(self.opened.sequence, progress, make_rows, rank=ranks.own, ranks=ranks.size)
        micro_batches = (read for _, read in Workers(self.context.num_workers).run(self.reader, rows))
        return val_batches(micro_batches, FailureLog(self.context, "val", list(self.opened.lost)))


def val_batches(micro_batches: Iterable[MicroBatch], failures: FailureLog) -> Iterator[Batch]:
    """The batches of validation, of which all ranks have equally many; what could not be used is noted."""
    failures.note([], 0, 0)  # shards that could not even be counted
    for index, micro_batch in enumerate(micro_batches):
        failures.note([micro_batch], 0, index)  # at once, because validation may be cut short
        yield micro_batch.batch
