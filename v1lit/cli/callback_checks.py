"""Whether callbacks of a recipe can work in a run, and watch what it logs."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    WeightAveraging,
)

from v1lit.cli.errors import UserError
from v1lit.cli.failures import package_of
from v1lit.data.datamodule import V1DataModule
from v1lit.errors import did_you_mean
from v1lit.revisit.registry import make_strategy
from v1lit.training.logged import names_in_training, names_in_validation, now_and_then
from v1lit.training.module import V1Module

REFUSED: dict[type[Callback], tuple[str, str]] = {
    BackboneFinetuning: (
        "what is trained is decided when the optimizer is made",
        "set model.backbone.freeze, and begin a run from the exported model without it",
    ),
    BatchSizeFinder: (
        "the batches of a run are planned before it begins",
        "set data.batch_size or data.packing.length",
    ),
    GradientAccumulationScheduler: (
        "data are planned for one number of batches per optimizer step",
        "set trainer.accumulate_grad_batches, and resume from a checkpoint with another number where it "
        "shall change",
    ),
    LearningRateFinder: (
        "the schedule is made before it could change its learning rate",
        "set model.optimizer.lr",
    ),
    WeightAveraging: (
        "a checkpoint would not have its average where a run looks for it",
        "set model.optimizer.ema_decay",
    ),
    ModelPruning: ("a pruned model has other parameters, and could not be exported", "take it away"),
}
"""Lightning's callbacks that cannot work here: why, and what to use."""


def check_callbacks(trainer: Trainer, module: V1Module, data: V1DataModule | None = None) -> None:
    """Refuse callbacks that cannot work, that watch what is not logged, or that lack a logger.

    With `data`, what is logged of its sources may be watched. Metrics of own callbacks are not known: with
    one of those, every name may be logged. Raises UserError.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # a connector sets it
    for callback in callbacks:
        for kind, (why, instead) in REFUSED.items():
            if isinstance(callback, kind):
                raise UserError(f"trainer.callbacks has a {type(callback).__name__}, but {why}\n{instead}")
        if isinstance(callback, (LearningRateMonitor, DeviceStatsMonitor)) and not trainer.loggers:
            raise UserError(
                f"trainer.callbacks: {type(callback).__name__} writes to loggers, but there is none\n"
                "leave trainer.logger out, or take the callback away"
            )
    if any(_is_own(callback) for callback in callbacks):
        return
    pointer = module.pointer_config
    skips = module.on_nonfinite == "skip"
    train_sources, val_sources = ([] if data is None else data.source_names(s) for s in ("train", "val"))
    validation = _validation_names(module, val_sources)
    strategy = make_strategy(module.revisit_config)
    own = [part for part, options in module.optimizer_config.parts.items() if "lr" in options]
    training = names_in_training(
        pointer, module.verify_loss > 0, skips, strategy.regions_weight > 0, strategy.ends, own, train_sources
    )
    rates = any(isinstance(callback, LearningRateMonitor) for callback in callbacks)
    for callback, name in _watched(callbacks):
        if name in (*training, *validation) or (rates and name.startswith("lr-")):
            _check_first_log(trainer, callback, name)
            continue
        likely = validation if name.startswith("val") else training
        hint = did_you_mean(name, [*validation, *training])
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
        if "/".join(name.split("/")[:2]) in _validation_names(module):  # without a source
            raise UserError(
                f"trainer.callbacks: {type(callback).__name__} watches {name!r}, but nothing is "
                f"validated: {why}\n"
                "let it watch train/loss, take it away, or give validation examples"
            )


def _validation_names(module: V1Module, sources: Iterable[str] = ()) -> list[str]:
    strategy = make_strategy(module.revisit_config)
    return names_in_validation(module.pointer_config, strategy.regions_weight > 0, strategy.ends, sources)


def _check_first_log(trainer: Trainer, callback: Callback, name: str) -> None:
    """Raises UserError where a measurement is looked at before its first log."""
    interval = getattr(trainer, "val_check_interval", None)
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if type(interval) is not int or not trainer.limit_val_batches or not now_and_then(name):
        return
    steps = interval // trainer.accumulate_grad_batches
    if steps < every and not getattr(callback, "_every_n_train_steps", 0):
        raise UserError(
            f"trainer.callbacks: {type(callback).__name__} looks for {name!r} after the first validation, at "
            f"step {steps}, but it is logged every {every} steps\n"
            f"set trainer.log_every_n_steps={max(1, steps)} or less, or let it watch another measurement"
        )


def _watched(callbacks: Iterable[Callback]) -> Iterable[tuple[Callback, str]]:
    for callback in callbacks:
        name = getattr(callback, "monitor", None)
        lenient = isinstance(callback, EarlyStopping) and not callback.strict
        if isinstance(callback, (ModelCheckpoint, EarlyStopping)) and isinstance(name, str) and not lenient:
            yield callback, name


def _is_own(callback: Callback) -> bool:
    return package_of(type(callback).__module__) not in ("lightning", "pytorch_lightning", "v1lit")
