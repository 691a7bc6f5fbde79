"""`StepLoader`: what training loaders share: the batches of an optimizer step, and notes of bad data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from lightning import Trainer

from v1lit.data.config import StreamConfig
from v1lit.data.encode.batch import Batch
from v1lit.data.loading.failures import Failure, run_of_failures, skipped_of
from v1lit.data.loading.ranks import Ranks
from v1lit.data.loading.reading import MicroBatch
from v1lit.data.loading.skips import SkipList
from v1lit.data.loading.step import StepBatches, iter_steps
from v1lit.data.loading.workers import Workers


class StepLoader:
    """The batches of an epoch on one rank; each knows the counts of its optimizer step.

    The batches of an optimizer step are fetched together and wait in the host's memory. All ranks have the
    same steps, and every step all its batches: a rank that has run out of examples gives blank ones.
    """

    def __init__(
        self, skips: SkipList, stream: StreamConfig, trainer: Trainer | None = None, num_workers: int = 0
    ) -> None:
        """Args:
        skips: where examples are noted that could not be used.
        stream: what to do with the last examples, and with bad ones.
        trainer: whose epochs, ranks and accumulation count; None for single batches of epoch 0.
        num_workers: processes that read and encode.
        """
        self.skips, self.stream, self.trainer, self.num_workers = skips, stream, trainer, num_workers
        self._ranks = Ranks.of(1 if trainer is None else trainer.world_size)
        self._in_a_row = 0

    @property
    def rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def _order_of(self, epoch: int) -> int:
        """The epoch whose order is read: with `trainer.overfit_batches` every epoch has the first one's."""
        return 0 if getattr(self.trainer, "overfit_batches", 0) > 0 else epoch

    @property
    def accumulate(self) -> int:
        """Batches of a rank that make one optimizer step."""
        return 1 if self.trainer is None else self.trainer.accumulate_grad_batches

    @property
    def workers(self) -> Workers:
        """The processes that read; the next step's batches are made while this step's are used."""
        return Workers(
            self.num_workers, self._pin, max(2, math.ceil(self.accumulate / max(1, self.num_workers)))
        )

    @property
    def _pin(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _iter_steps(
        self, micro_batches: Iterable[MicroBatch], blank: Callable[[], Batch], steps: int | None, done: int
    ) -> Iterator[StepBatches]:
        """See `iter_steps`. done: batches of the epoch that count as used."""
        for step in iter_steps(
            micro_batches,
            self.accumulate,
            self._ranks,
            blank,
            steps=steps,
            drop=self.stream.tail == "drop",
            first=done,
            limit=math.inf if self.trainer is None else self.trainer.num_training_batches,
        ):
            yield step.pinned() if self._pin else step

    def _look_at(self, batches: StepBatches, epoch: int, step: int) -> None:
        """Note what a step says of the data."""
        failures = [failure for micro_batch in batches.micro_batches for failure in micro_batch.failures]
        if batches.failures:  # All ranks know, so all of them tell each other.
            self._note(batches.examples, failures, epoch, step)
        else:
            self._in_a_row, _ = run_of_failures(failures, self._in_a_row)
            self.skips.note(batches.examples, [], 0)
        self.skips.note_left_out(batches.left_out)

    def _note(self, used: int, failures: Sequence[Failure | None], epoch: int, step: int) -> None:
        """Note how many examples all ranks use, and what each of them cannot; to be called on all ranks."""
        self._in_a_row, longest = run_of_failures(failures, self._in_a_row)
        skipped = skipped_of(failures, "train", epoch, step)
        everyone = self._ranks.gather((skipped, longest))
        everyones = [one for skipped, _ in everyone for one in skipped]
        self.skips.note(used + len(everyones), everyones, max(longest for _, longest in everyone))
