"""Whether callbacks of a recipe watch what the run logs."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
)

from v1lit.cli.errors import UserError, nearest
from v1lit.cli.failures import package_of
from v1lit.training.logged import names_in_training, names_in_validation
from v1lit.training.module import V1Module


def check_monitors(trainer: Trainer, module: V1Module) -> None:
    """Check that what callbacks watch is logged, and that those which need a logger have one.

    Metrics of own callbacks are not known: with one of those, every name may be logged. Raises UserError.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # a connector sets it
    for callback in callbacks:
        if isinstance(callback, (LearningRateMonitor, DeviceStatsMonitor)) and not trainer.loggers:
            raise UserError(
                f"trainer.callbacks: {type(callback).__name__} writes to loggers, but there is none\n"
                "leave trainer.logger out, or take the callback away"
            )
    if any(_is_own(callback) for callback in callbacks):
        return
    pointer = module.pointer_config
    skips = module.on_nonfinite == "skip"
    training = names_in_training(pointer, verified=module.verify_loss > 0, skips=skips)
    validation = names_in_validation(pointer)
    rates = any(isinstance(callback, LearningRateMonitor) for callback in callbacks)
    for callback, name in _watched(callbacks):
        if name in (*training, *validation) or (rates and name.startswith("lr-")):
            continue
        likely = validation if name.startswith("val") else training
        hint = nearest(name, [*validation, *training])
        raise UserError(
            f"trainer.callbacks: {type(callback).__name__} watches {name!r}, which is not logged{hint}\n"
            f"logged: {', '.join(likely)}"
        )


def check_validation(trainer: Trainer, module: V1Module, has_val: bool) -> None:
    """Check that nothing watches a validation that there is not; raises UserError."""
    if has_val and trainer.limit_val_batches != 0:
        return
    why = "trainer.limit_val_batches is 0" if has_val else "the source has no validation examples"
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback, name in _watched(callbacks):
        if name in names_in_validation(module.pointer_config):
            raise UserError(
                f"trainer.callbacks: {type(callback).__name__} watches {name!r}, but nothing is "
                f"validated: {why}\n"
                "let it watch train/loss, take it away, or give validation examples"
            )


def _watched(callbacks: Iterable[Callback]) -> Iterable[tuple[Callback, str]]:
    for callback in callbacks:
        name = getattr(callback, "monitor", None)
        lenient = isinstance(callback, EarlyStopping) and not callback.strict
        if isinstance(callback, (ModelCheckpoint, EarlyStopping)) and isinstance(name, str) and not lenient:
            yield callback, name


def _is_own(callback: Callback) -> bool:
    return package_of(type(callback).__module__) not in ("lightning", "pytorch_lightning", "v1lit")
