"""`LoaderContext`: what a loader knows of the run that it serves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from lightning import Trainer

from v1lit.data.config import StreamConfig
from v1lit.data.loading.ranks import Ranks
from v1lit.data.loading.skips import SkipList
from v1lit.data.loading.workers import Workers


@dataclass(frozen=True)
class LoaderContext:
    """The run that a loader serves."""

    stream: StreamConfig
    """What to do with the last examples of an epoch, and with bad ones."""
    skips: SkipList
    """Where examples are noted that could not be used."""
    num_workers: int = 0
    """Processes that read and encode."""
    trainer: Trainer | None = None
    """Whose epochs, ranks and accumulation count; None for single batches of epoch 0."""

    @cached_property
    def ranks(self) -> Ranks:
        """To be asked for on all ranks, the first time. Raises ValueError where they cannot talk."""
        return Ranks.of(self.trainer)

    @property
    def current_epoch(self) -> int:
        """By Lightning's count."""
        return 0 if self.trainer is None else self.trainer.current_epoch

    def order_of(self, epoch: int) -> int:
        """The epoch whose order is read: with `trainer.overfit_batches` every epoch has the first one's."""
        return 0 if getattr(self.trainer, "overfit_batches", 0) > 0 else epoch

    @property
    def accumulate(self) -> int:
        """Batches of a rank that make one optimizer step."""
        return 1 if self.trainer is None else self.trainer.accumulate_grad_batches

    @property
    def limit(self) -> float:
        """Batches of a rank that Lightning takes of an epoch."""
        return math.inf if self.trainer is None else self.trainer.num_training_batches

    @property
    def drops_tail(self) -> bool:
        """Whether a last step that is not full is left out."""
        return self.stream.tail == "drop"

    @property
    def pins(self) -> bool:
        """Whether batches wait in page-locked memory, for faster copies to a GPU."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    @property
    def workers(self) -> Workers:
        """The processes that read; the next step's batches are made while this step's are used."""
        ahead = math.ceil(self.accumulate / max(1, self.num_workers))
        return Workers(self.num_workers, self.pins, max(2, ahead))
