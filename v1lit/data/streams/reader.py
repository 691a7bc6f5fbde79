"""`StreamReader`: the batches of a rank's readers, each of which is a worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.utils.data import Dataset

from v1lit.data.errors import ShardError
from v1lit.data.lengths.lookup import measure_at
from v1lit.data.loading.micro_batch import MicroBatch
from v1lit.data.loading.reading import Encoder, MicroBatchReader
from v1lit.data.sampling.grouping import Grouping
from v1lit.data.sampling.remaining import MicroBatchState
from v1lit.data.sampling.rows import MicroBatchPlan
from v1lit.data.streams.examples import Readers, StreamExamples
from v1lit.data.streams.reader_state import RankState, ReaderState


@dataclass(frozen=True)
class StreamMicroBatch(MicroBatch):
    """A batch of one reader."""

    after: ReaderState | None = None
    """How far the reader has come with it; None where it had no more."""
    error: ShardError | None = None
    """Why the reader cannot read further."""
    rank: RankState | None = None
    """How far the reader's rank has come with it."""

    @property
    def reached(self) -> RankState | None:
        return self.rank


class StreamReader(Dataset[StreamMicroBatch]):
    """The next batch of each reader, by the index of the reader in its rank.

    Args:
        readers: what each of them reads, and how far it has come.
        encoder: makes the batch of a row.
        grouping: which examples make a row.
    """

    def __init__(self, readers: Readers, encoder: Encoder, grouping: Grouping) -> None:
        self.readers, self.encoder, self.grouping = readers, encoder, grouping
        self._open: dict[int, tuple[StreamExamples, MicroBatchReader, Iterator[MicroBatchPlan]]] = {}

    def __getitem__(self, reader: int) -> StreamMicroBatch:
        if reader not in self._open:
            self._open[reader] = self._begin(reader)
        examples, batches, rows = self._open[reader]
        try:
            row = next(rows, None)
        except ShardError as error:
            return StreamMicroBatch(self.encoder.blank(), (), error=error)
        if row is None:
            return StreamMicroBatch(self.encoder.blank(), ())
        read = batches[row]
        return StreamMicroBatch(read.batch, read.failures, read.left_out, row, examples.after(row.after))

    def _begin(self, reader: int) -> tuple[StreamExamples, MicroBatchReader, Iterator[MicroBatchPlan]]:
        examples, state = StreamExamples(self.readers, reader), self.readers.states[reader]
        measure = partial(measure_at, examples=examples, options=self.encoder.length_options)
        rows = self.grouping.make_rows(measure)(examples, MicroBatchState(state.read, state.waiting))
        return examples, MicroBatchReader(examples, self.encoder), rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}
