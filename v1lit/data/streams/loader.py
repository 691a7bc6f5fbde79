"""The loaders of a stream: training with ranks and workers that share the files, and validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, repeat
from typing import NoReturn

from v1lit.data.encode.batch import Batch
from v1lit.data.loading.context import LoaderContext
from v1lit.data.loading.failures import FailureLog
from v1lit.data.loading.micro_batch import MicroBatch
from v1lit.data.loading.reading import Encoder
from v1lit.data.loading.step_loader import StepLoader
from v1lit.data.loading.val_loader import val_batches
from v1lit.data.loading.workers import Workers
from v1lit.data.sampling.grouping import Grouping
from v1lit.data.streams.examples import Readers, StreamFiles
from v1lit.data.streams.reader import StreamReader
from v1lit.data.streams.reader_state import FileStart, RankState, ReaderState
from v1lit.data.streams.source import StreamSource
from v1lit.data.streams.state import StreamLayout, StreamProgress, StreamReading


class StreamLoader(StepLoader):
    """The batches of a stream, from where the run has come; nobody knows how many they are.

    A rank has one reader per worker, or one. They make its batches in turn; one that has no more is passed
    over, and the epoch ends when all readers of all ranks have come to their end.

    Args:
        source: the files, and their order.
        encoder: makes the batches of their examples.
        grouping: which examples make a row.
        reading: says where to begin.
        context: the run that it serves.

    Raises ValueError where there are fewer files than readers.
    """

    def __init__(
        self,
        source: StreamSource,
        encoder: Encoder,
        grouping: Grouping,
        reading: StreamReading,
        context: LoaderContext,
    ) -> None:
        super().__init__(context, encoder.blank)
        self.source, self.encoder, self.grouping, self.reading = source, encoder, grouping, reading
        files, layout = source.train.files, self.layout
        if len(files) < layout.readers:
            most = len(files) // layout.ranks
            raise ValueError(
                f"data.source.path names {len(files)} files for {layout.readers} readers "
                f"({layout.ranks} ranks x {layout.workers} workers), and each file belongs to one reader; "
                + (f"set data.num_workers={most} or less" if most else "train on fewer ranks")
                + ", or split the data into more files"
            )

    @property
    def layout(self) -> StreamLayout:
        """How an epoch is divided now."""
        return StreamLayout(self.context.ranks.size, max(1, self.context.num_workers), str(self.grouping))

    def __len__(self) -> NoReturn:
        raise TypeError("how many batches an epoch of a stream has is not known before it ends")

    def __iter__(self) -> Iterator[Batch]:
        context = self.context
        progress = self.reading.begin(
            context.current_epoch,
            self.layout,
            lambda epoch: self.source.order(context.order_of(epoch)),
            context.ranks.own,
        )
        done = progress.steps * context.accumulate
        for _, step in self._iter_steps(progress, self._micro_batches(progress), done):
            yield from self._batches(step, progress.epoch)
        if not self.used and not progress.steps:
            self._refuse_nothing(
                "data.source.path: the files hold no examples, or too few for one optimizer step"
            )

    def _micro_batches(self, progress: StreamProgress) -> Iterator[MicroBatch]:
        """The rank's batches, its readers in turn."""
        rank, layout, size = self.context.ranks.own, self.layout, self.layout.workers
        state = progress.of_rank(rank)
        states, at_end = list(state.readers), set[int]()
        parts = [progress.part(rank + layout.ranks * worker) for worker in range(size)]
        readers = Readers(self.source.train, parts, state.readers, self.context.order_of(progress.epoch))
        reader = StreamReader(readers, self.encoder, self.grouping)
        turns = ((state.next + turn) % size for turn in count())
        for turn, micro_batch in self.context.workers.run(reader, turns):
            if micro_batch.error is not None:
                raise micro_batch.error
            if micro_batch.after is None:
                at_end.add(turn)
                if len(at_end) == size:
                    return
                continue
            states[turn] = micro_batch.after
            yield replace(micro_batch, rank=RankState((turn + 1) % size, tuple(states)))


class StreamValLoader:
    """The first validation examples of a stream, in order.

    Every rank reads all and uses its share, so that all have equally many batches.

    Args:
        stream: the files.
        encoder: makes the batches of their examples.
        size: examples per batch.
        limit: examples of all ranks together; None for all.
        context: the run that it serves.
    """

    def __init__(
        self, stream: StreamFiles, encoder: Encoder, size: int, limit: int | None, context: LoaderContext
    ) -> None:
        self.stream, self.encoder, self.size, self.limit = stream, encoder, size, limit
        self.context = context

    def __len__(self) -> NoReturn:
        raise TypeError("how many validation examples a stream has is not known before it ends")

    def __iter__(self) -> Iterator[Batch]:
        return val_batches(self._micro_batches(), FailureLog(self.context, "val"))

    def _micro_batches(self) -> Iterator[MicroBatch]:
        ranks = self.context.ranks
        files = tuple(map(FileStart, range(len(self.stream.files))))
        readers = Readers(self.stream, [files], [ReaderState()], 0, ranks.own, ranks.size, self.limit)
        reader = StreamReader(readers, self.encoder, Grouping(self.size))
        for _, micro_batch in Workers(self.context.num_workers).run(reader, repeat(0)):
            if micro_batch.error is not None:
                raise micro_batch.error
            if micro_batch.after is None:
                return
            yield micro_batch
