"""The loaders of a stream: training with ranks and workers that share the files, and validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, repeat
from typing import NoReturn

from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from v1lit.data.config import StreamConfig
from v1lit.data.encode.batch import Batch, ReadPosition
from v1lit.data.errors import BadDataError
from v1lit.data.loading.reading import MicroBatch, MicroBatchReader
from v1lit.data.loading.skips import SkipList
from v1lit.data.loading.step_loader import StepLoader
from v1lit.data.loading.val_loader import val_batches
from v1lit.data.loading.workers import Workers
from v1lit.data.sampling.grouping import Grouping
from v1lit.data.shards.examples import Readable
from v1lit.data.streams.examples import Readers, StreamFiles
from v1lit.data.streams.reader import StreamMicroBatch, StreamReader
from v1lit.data.streams.reader_state import Begin, RankState, ReaderState
from v1lit.data.streams.state import StreamLayout, StreamProgress

MakeReader = Callable[[Readable], MicroBatchReader]


class StreamLoader(StepLoader):
    """The batches of a stream, from where the run has come; nobody knows how many they are.

    A rank has one reader per worker, or one. They make its batches in turn; one that has no more is passed
    over, and the epoch ends when all readers of all ranks have come to their end.
    """

    def __init__(
        self,
        stream: StreamFiles,
        row_reader: MakeReader,
        grouping: Grouping,
        blank: Callable[[], Batch],
        begin: Callable[[int, StreamLayout], StreamProgress],
        skips: SkipList,
        config: StreamConfig,
        trainer: Trainer | None = None,
        num_workers: int = 0,
    ) -> None:
        """Args:
        stream: the files.
        row_reader: makes the batches of some examples.
        grouping: which examples make a row.
        blank: makes a batch without examples.
        begin: given the trainer's epoch and the layout, says where to begin.
        skips, config, trainer, num_workers: as of `StepLoader`.

        Raises ValueError where there are fewer files than readers.
        """
        super().__init__(skips, config, trainer, num_workers)
        self.files, self.row_reader, self.grouping = stream, row_reader, grouping
        self.blank, self.begin = blank, begin
        layout = self.layout
        if len(stream.files) < layout.readers:
            most = len(stream.files) // layout.ranks
            raise ValueError(
                f"data.source.path names {len(stream.files)} files for {layout.readers} readers "
                f"({layout.ranks} ranks x {layout.workers} workers), and each file belongs to one reader; "
                + (f"set data.num_workers={most} or less" if most else "train on fewer ranks")
                + ", or split the data into more files"
            )

    @property
    def layout(self) -> StreamLayout:
        """How an epoch is divided now."""
        return StreamLayout(self._ranks.size, max(1, self.num_workers), str(self.grouping))

    def __len__(self) -> NoReturn:
        raise TypeError("how many batches an epoch of a stream has is not known before it ends")

    def batches_done(self, progress: StreamProgress) -> int:
        """Batches of a rank that count as used when an epoch is begun at `progress`."""
        return progress.steps * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        progress = self.begin(0 if self.trainer is None else self.trainer.current_epoch, self.layout)
        begun, used, left_out = time.perf_counter(), 0, 0
        state = progress.of_rank(self.rank)
        steps = self._iter_steps(self._micro_batches(progress), self.blank, None, self.batches_done(progress))
        for number, step in enumerate(steps, progress.steps):
            if progress.steps and number == progress.steps:
                rank_zero_info(
                    f"resumed at example {progress.examples_read} of epoch {progress.epoch} in "
                    f"{time.perf_counter() - begun:.2f} s"
                )
            self._look_at(step, progress.epoch, number)
            used, left_out = used + step.examples, left_out + step.left_out
            for index, (micro_batch, batch) in enumerate(zip(step.micro_batches, step.batches, strict=True)):
                state = (
                    micro_batch.rank
                    if isinstance(micro_batch, StreamMicroBatch) and micro_batch.rank is not None
                    else state
                )
                last = index == len(step.batches) - 1
                yield replace(batch, read=ReadPosition(progress.epoch, index, last, state))
        if not used and not progress.steps:
            self._refuse_nothing(left_out)

    def _micro_batches(self, progress: StreamProgress) -> Iterator[MicroBatch]:
        """The rank's batches, its readers in turn."""
        state, size = progress.of_rank(self.rank), self.layout.workers
        states, ended = list(state.readers), set[int]()
        parts = [progress.part(self.rank + self.layout.ranks * worker) for worker in range(size)]
        readers = Readers(self.files, parts, state.readers, self._order_of(progress.epoch))
        reader = StreamReader(readers, self.row_reader, self.grouping)
        turns = ((state.next + turn) % size for turn in count())
        for number, micro_batch in self.workers.run(reader, turns):
            assert isinstance(micro_batch, StreamMicroBatch)
            if micro_batch.error is not None:
                raise micro_batch.error
            if micro_batch.ended:
                ended.add(number)
                if len(ended) == size:
                    return
                continue
            states[number] = micro_batch.after
            yield replace(micro_batch, rank=RankState((number + 1) % size, tuple(states)))

    def _refuse_nothing(self, left_out: int) -> NoReturn:
        """An epoch without examples would never end."""
        if self.skips.count:
            raise BadDataError(f"{self.skips.summary()}: no example of the epoch could be used")
        if left_out:
            raise ValueError(f"data.map leaves out all {left_out} training examples that were read")
        raise ValueError("data.source.path: the files hold no examples, or too few for one optimizer step")


class StreamValLoader:
    """The first validation examples of a stream, in order. Every rank reads all and uses its share, so that
    all have equally many batches."""

    def __init__(
        self,
        stream: StreamFiles,
        row_reader: MakeReader,
        size: int,
        limit: int | None,
        skips: SkipList,
        trainer: Trainer | None,
        workers: int,
    ) -> None:
        self.stream, self.row_reader, self.size, self.limit = stream, row_reader, size, limit
        self.skips, self.trainer, self.workers = skips, trainer, workers

    def __len__(self) -> NoReturn:
        raise TypeError("how many validation examples a stream has is not known before it ends")

    def __iter__(self) -> Iterator[Batch]:
        return val_batches(
            self._micro_batches(), self.skips, 1 if self.trainer is None else self.trainer.world_size
        )

    def _micro_batches(self) -> Iterator[MicroBatch]:
        rank, ranks = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        everything = tuple(map(Begin, range(len(self.stream.files))))
        readers = Readers(self.stream, [everything], [ReaderState()], 0, rank, ranks, self.limit)
        reader = StreamReader(readers, self.row_reader, Grouping(self.size))
        for _, micro_batch in Workers(self.workers).run(reader, repeat(0)):
            assert isinstance(micro_batch, StreamMicroBatch)
            if micro_batch.error is not None:
                raise micro_batch.error
            if micro_batch.ended:
                return
            yield micro_batch
