"""`StepLoader`: what training loaders share: the batches of an optimizer step, and notes of bad data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NoReturn, Protocol

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from v1lit.data.encode.batch import Batch, ReadPosition
from v1lit.data.errors import BadDataError, ShardError
from v1lit.data.loading.context import LoaderContext
from v1lit.data.loading.failures import FailureLog
from v1lit.data.loading.micro_batch import MicroBatch
from v1lit.data.loading.step import StepBatches, heaviest_first, iter_steps
from v1lit.data.reasons import in_words, most_frequent


class Reached(Protocol):
    """How far an epoch has been read, of shards or of a stream."""

    @property
    def epoch(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def examples_read(self) -> int: ...


class StepLoader:
    """The batches of an epoch on one rank; each knows the counts of its optimizer step.

    The batches of an optimizer step are fetched together and wait in the host's memory. All ranks have the
    same steps, and every step all its batches: a rank that has run out of examples makes blank ones.

    Args:
        context: the run that it serves.
        blank: makes a batch without examples.
        lost: shards that planning finds to be unusable, see `FailureLog`.
    """

    def __init__(
        self, context: LoaderContext, blank: Callable[[], Batch], lost: list[ShardError] | None = None
    ) -> None:
        self.context, self.blank = context, blank
        self.failures = FailureLog(context, "train", lost)
        self.used = self.left_out = 0
        """Examples of this epoch, on all ranks, that are in batches, and that the map has left out."""

    def _iter_steps(
        self, progress: Reached, micro_batches: Iterable[MicroBatch], done: int, left: int | None = None
    ) -> Iterator[tuple[int, StepBatches]]:
        """The steps of an epoch by their index in it, bad data noted.

        Args:
            progress: where the epoch is begun.
            micro_batches: of this rank.
            done: batches of the epoch that count as used.
            left: steps that remain; None where that is not known.
        """
        context, begun = self.context, time.perf_counter()
        self.used = self.left_out = 0
        steps = iter_steps(micro_batches, context, self.blank, steps=left, first=done)
        for index, step in enumerate(steps, progress.steps):
            if progress.steps and index == progress.steps:
                rank_zero_info(
                    f"resumed at example {progress.examples_read} of epoch {progress.epoch} in "
                    f"{time.perf_counter() - begun:.2f} s"
                )
            self.failures.note_step(step, progress.epoch, index)
            self.used, self.left_out = self.used + step.examples, self.left_out + step.left_out
            yield index, step.pinned() if context.pins else step

    def _refuse_nothing(self, too_few: str) -> NoReturn:
        """Raise ValueError or BadDataError: an epoch without examples would never end."""
        skips = self.context.skips
        if skips.count:
            why = in_words(most_frequent(skip.reason for skip in skips.skipped))
            raise BadDataError(f"{skips.summary()}: no example of the epoch could be used: {why}")
        if self.left_out:
            raise ValueError(f"data.map leaves out all {self.left_out} training examples that were read")
        raise ValueError(too_few)

    @staticmethod
    def _batches(step: StepBatches, epoch: int) -> Iterator[Batch]:
        """The batches of a step, heaviest first, each with how far the data have been read with it."""
        # An image token is work for the vision tower as well.
        order = heaviest_first([batch.tokens + batch.image_tokens for batch in step.batches])
        for index in order:
            position = ReadPosition(epoch, index, index == order[-1], step.micro_batches[index].reached)
            yield replace(step.batches[index], read=position)
