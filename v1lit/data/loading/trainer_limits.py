"""What a Trainer asks of an epoch, checked against the batches that the epoch has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from v1lit.errors import OptionError

Count = Callable[[], int | None]
"""Returns the batches of an epoch on one rank; None where that is not known before it is read."""


def refuse_changing_accumulation(trainer: Trainer) -> None:
    """Raise ValueError for a GradientAccumulationScheduler: what makes a step is planned for a whole run."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # a connector sets it
        if isinstance(callback, GradientAccumulationScheduler):
            raise ValueError(
                "trainer.callbacks has a GradientAccumulationScheduler, but data are planned for one number "
                "of batches per optimizer step; set trainer.accumulate_grad_batches, and resume from a "
                "checkpoint with another number where it shall change"
            )


def check_limits(trainer: Trainer, train_batches: Count, val_batches: Count) -> None:
    """Check what a Trainer would find out when weights have been loaded; raises ValueError.

    The batches are counted only where an argument asks for it.
    """
    of_train: int | float | None = trainer.limit_train_batches
    _check_share(trainer, "train", of_train, train_batches)
    _check_share(trainer, "val", trainer.limit_val_batches, val_batches)
    _check_interval(trainer, lambda: _limited(train_batches(), of_train))


def _check_share(trainer: Trainer, split: str, share: int | float | None, count: Count) -> None:
    if not isinstance(share, float) or share in (0.0, 1.0):
        return
    words = {"train": "training", "val": "validation"}[split]
    overfits = getattr(trainer, "overfit_batches", 0) > 0
    argument = "overfit_batches" if overfits else f"limit_{split}_batches"
    batches = count()
    if batches is None:
        why = (
            f"that is a share of an epoch, but how many {words} batches it has is not known before it is "
            "read: rows are filled, or the shards have no index\ngive a number of batches, such as 10"
        )
        raise OptionError(argument, share, why, "trainer")
    if batches and int(batches * share) == 0:
        why = (
            f"that is less than one of the {batches} {words} batches of an epoch\n"
            f"give a number of batches, such as 1, or a share of {1 / batches:.3g} or more"
        )
        raise OptionError(argument, share, why, "trainer")


def _check_interval(trainer: Trainer, count: Count) -> None:
    interval: Any = getattr(trainer, "val_check_interval", None)  # Lightning has none where it is a time
    epochs = trainer.check_val_every_n_epoch
    if epochs is None or not trainer.limit_val_batches:
        return
    if not isinstance(interval, (int, float)) or (isinstance(interval, float) and interval == 1.0):
        return
    batches = count()
    if isinstance(interval, float) and batches is None:
        why = (
            "that is a share of an epoch, but how many batches it has is not known before it is read: rows "
            "are filled, or the shards have no index\ngive a number of batches"
        )
        raise OptionError("val_check_interval", interval, why, "trainer")
    if isinstance(interval, int) and batches and interval > batches:
        why = (
            f"an epoch has {batches} batches, and with trainer.check_val_every_n_epoch={epochs} they are "
            "counted within epochs\nto count on through all epochs, set "
            f"trainer.check_val_every_n_epoch=null; else give {batches} or less"
        )
        raise OptionError("val_check_interval", interval, why, "trainer")


def _limited(batches: int | None, limit: int | float | None) -> int | None:
    """Batches of an epoch that is cut short."""
    if batches is None:
        return None
    if isinstance(limit, int):
        return min(batches, limit)
    return batches if limit is None else int(batches * limit)
