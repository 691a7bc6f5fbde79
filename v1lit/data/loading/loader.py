"""The training loader: a plan's rows, made into batches by workers, those of an optimizer step together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property

from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from v1lit.data.config import StreamConfig
from v1lit.data.encode.batch import Batch, ReadPosition
from v1lit.data.errors import BadDataError
from v1lit.data.lengths.lookup import LengthLookup
from v1lit.data.loading.failures import Failure, lost_shards
from v1lit.data.loading.prefetch import ShardPrefetcher
from v1lit.data.loading.reading import MicroBatch, MicroBatchReader
from v1lit.data.loading.sequence import OpenedSequence
from v1lit.data.loading.skips import SkipList
from v1lit.data.loading.step_loader import StepLoader
from v1lit.data.reasons import in_words, most_frequent
from v1lit.data.sampling.epoch import Progress, StepLayout, rank_rows, steps_left
from v1lit.data.sampling.grouping import Grouping
from v1lit.data.sampling.rows import MicroBatchPlan


class TrainLoader(StepLoader):
    """The batches of a plan, from where the run has come."""

    def __init__(
        self,
        opened: OpenedSequence,
        reader: MicroBatchReader,
        grouping: Grouping,
        lengths: LengthLookup,
        begin: Callable[[int, StepLayout], Progress],
        skips: SkipList,
        stream: StreamConfig,
        trainer: Trainer | None = None,
        num_workers: int = 0,
    ) -> None:
        """Args:
        opened: the examples and their order.
        reader: makes a row's batch.
        grouping: which examples make a row.
        lengths: of the examples, for rows that need them.
        begin: given the trainer's epoch and the layout, says where to begin.
        skips, stream, trainer, num_workers: as of `StepLoader`.
        """
        super().__init__(skips, stream, trainer, num_workers)
        self.opened, self.reader, self.grouping, self.lengths = opened, reader, grouping, lengths
        self.begin = begin
        self._planned: dict[tuple[int, int, StepLayout], int] = {}

    @property
    def layout(self) -> StepLayout:
        """How a step's examples are divided now."""
        return StepLayout(self._ranks.size * self.accumulate, str(self.grouping))

    def __len__(self) -> int:
        """Batches per epoch on every rank.

        Raises TypeError where that is not known before it is read, and ValueError where it is none.
        """
        left = self.steps_left(Progress(layout=self.layout))
        if left == 0 and self.opened.indexed:  # else it is told where damaged shards are, too
            raise ValueError(self._too_few())
        if left is None:
            why = "is not known" if self.opened.indexed else "is not known without an index"
            raise TypeError(f"how many batches an epoch has {why} before it ends")
        return left * self.accumulate

    def steps_left(self, progress: Progress) -> int | None:
        """Optimizer steps that remain of an epoch; None where that is not known."""
        if self.grouping.packs or not self.opened.indexed:  # also where this rank has counted all by now
            return None
        return steps_left(self.opened.sequence, progress, self.grouping.size, self.stream.tail == "drop")

    def planned_steps(self, start: Progress, epochs: int) -> int | None:
        """Optimizer steps from there to the end of so many epochs; None without an index or, where rows are
        filled, lengths.

        Filled rows are planned for it, without reading: about a third of a millisecond for each row of 8,192
        tokens, shared out over the ranks, which must all call it.
        """
        if not self._can_plan:
            return None
        later = range(start.epoch + 1, epochs)
        whole = (Progress(epoch, layout=self.layout) for epoch in later)
        start = start.divided(self.layout, self.opened.sequence.length)
        first = self._steps_of(start) if start.epoch < epochs else 0
        if not self.grouping.packs:  # all epochs are alike
            return first + len(later) * self._steps_of(Progress(layout=self.layout))
        return first + sum(map(self._steps_of, whole))

    @cached_property
    def _can_plan(self) -> bool:
        """Whether all ranks have what planning needs: a machine may lack a table that others have."""
        here = self.opened.indexed and (not self.grouping.packs or self.lengths.known)
        return all(self._ranks.gather(here))

    def _steps_of(self, progress: Progress) -> int:
        """Optimizer steps that Lightning will make of what remains of an epoch."""
        left = self.steps_left(progress)
        left = self._planned_steps(progress) if left is None else left
        limit = math.inf if self.trainer is None else self.trainer.num_training_batches
        if limit == math.inf:
            return left
        return min(left, -(-max(0, int(limit) - self.batches_done(progress)) // self.accumulate))

    def _planned_steps(self, progress: Progress) -> int:
        key = (progress.epoch, progress.steps, self.layout)
        if key not in self._planned:
            filled = [bool(row.refs or row.refused) for row in self._rows(progress)]
            every = [filled[at : at + self.accumulate] for at in range(0, len(filled), self.accumulate)]
            steps = [step for step in every if any(step)]  # the last one may only say what is left out
            if self.stream.tail == "drop":
                full = [all(step) for step in steps]
                self._planned[key] = min(self._ranks.gather([*full, False].index(False)))
            else:
                self._planned[key] = max(self._ranks.gather(len(steps)))
        return self._planned[key]

    def _rows(self, progress: Progress) -> Iterator[MicroBatchPlan]:
        return rank_rows(
            self.opened.sequence,
            replace(progress, epoch=self._order_of(progress.epoch)),
            self.grouping.make_rows(self.lengths),
            rank=self.rank,
            ranks=self._ranks.size,
        )

    def batches_done(self, progress: Progress) -> int:
        """Batches of this layout that count as used when an epoch is begun at `progress`."""
        left = self.steps_left(progress)
        return progress.steps * self.accumulate if left is None else len(self) - left * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        progress = self.begin(0 if self.trainer is None else self.trainer.current_epoch, self.layout)
        numbers = range(self.rank, self.layout.micro_batches, self._ranks.size)
        states = [progress.state_of(number) for number in numbers]
        left, used, left_out, begun = self.steps_left(progress), 0, 0, time.perf_counter()
        with ExitStack() as stack:
            prefetcher = None
            fetch_ahead = self.opened.remote and self.opened.indexed
            number = progress.steps
            steps = self._iter_steps(
                self._micro_batches(progress), self.reader.blank, left, self.batches_done(progress)
            )
            for number, step in enumerate(steps, progress.steps):
                if prefetcher is None and fetch_ahead:
                    # Its thread begins when the workers have been forked: a lock that it held would stay so.
                    prefetcher = stack.enter_context(self._prefetcher(progress))
                if progress.steps and number == progress.steps:
                    rank_zero_info(
                        f"resumed at example {progress.examples_read} of epoch {progress.epoch} in "
                        f"{time.perf_counter() - begun:.2f} s"
                    )
                self._look_at(step, progress.epoch, number)
                refs = [
                    ref
                    for micro_batch in step.micro_batches
                    if micro_batch.row is not None
                    for ref in micro_batch.row.refs
                ]
                if prefetcher is not None and refs:
                    prefetcher.reached(max(ref.epoch_index for ref in refs))
                used, left_out = used + step.examples, left_out + step.left_out
                if left is not None and number + 1 == progress.steps + left:
                    self._report(progress, used, left_out)  # now: nobody asks for more batches
                for index, (micro_batch, batch) in enumerate(
                    zip(step.micro_batches, step.batches, strict=True)
                ):
                    states[index] = states[index] if micro_batch.row is None else micro_batch.row.after
                    last = index == len(step.batches) - 1
                    yield replace(batch, read=ReadPosition(progress.epoch, index, last, states[index]))
        if not self.opened.indexed:  # The last shards of all may be damaged ones.
            self._note(0, self._lost(), progress.epoch, number)
        if left is None:
            self._report(progress, used, left_out)

    def _micro_batches(self, progress: Progress) -> Iterator[MicroBatch]:
        for row, micro_batch in self.workers.run(self.reader, self._rows(progress)):
            yield self._with_planned(replace(micro_batch, row=row))

    def _with_planned(self, micro_batch: MicroBatch) -> MicroBatch:
        """Add the shards that planning has found to be unusable already."""
        lost = self._lost()
        return replace(micro_batch, failures=(*lost, *micro_batch.failures)) if lost else micro_batch

    def _lost(self) -> list[Failure]:
        """Shards that planning has found to be unusable since this was last called."""
        lost = list(self.opened.lost)
        self.opened.lost.clear()
        return lost_shards(lost, self.rank)

    def _prefetcher(self, progress: Progress) -> ShardPrefetcher:
        opened, window, ranks = self.opened, self.stream.shuffle_window, self._ranks.size
        # What remains of an epoch is dealt out from its first position on, which may be any.
        first = (self.rank + progress.remaining.tail - len(progress.remaining.head)) % ranks
        epoch = self._order_of(progress.epoch)
        return ShardPrefetcher(opened.catalogs, opened.sequence, epoch, first, ranks, window)

    def _too_few(self) -> str:
        total = self.opened.sequence.examples
        if self.stream.tail == "pad":  # which would have filled up any number but none
            where = ", ".join(catalog.location for catalog in self.opened.catalogs)
            return f"there are no training examples: the shards of {where} hold none"
        return (
            f"{'the' if total is None else total} training examples do not fill one optimizer step of "
            f"{self.layout.micro_batches} batches, and data.stream.tail is {self.stream.tail!r}; set it to "
            "pad, or lower trainer.accumulate_grad_batches, the number of devices or data.batch_size"
        )

    def _report(self, progress: Progress, used: int, left_out: int) -> None:
        """Say what an epoch has left over.

        Raises ValueError or BadDataError where nothing was used: it would never end.
        """
        total = self.opened.sequence.examples
        if not used and not progress.steps and self.skips.count:
            why = in_words(most_frequent(one.reason for one in self.skips.skipped))
            raise BadDataError(f"{self.skips.summary()}: no example of the epoch could be used: {why}")
        if not used and not progress.steps and left_out:
            raise ValueError(f"data.map leaves out all {left_out} training examples that were read")
        if not used and not progress.steps:
            raise ValueError(self._too_few())
        whole = self.trainer is None or self.trainer.limit_train_batches in (None, 1.0)
        if self.stream.tail == "drop" and whole and total is not None and not progress.steps:
            left = total - used - left_out - self.skips.count_of(progress.epoch)
            if left > 0:
                rank_zero_info(
                    f"epoch {progress.epoch}: {left} of {total} training examples are left over, others each "
                    f"time: they do not make a whole optimizer step of {self.layout.micro_batches} batches"
                )
