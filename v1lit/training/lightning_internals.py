"""Everything that v1lit uses of Lightning though Lightning does not document it.

Its private attributes, its loops, and the keys of its checkpoints stand here and nowhere else;
`tests/training/test_lightning_internals.py` says what breaks when one of them is gone.

Lightning saves its counters as they stand in the middle of a hook, and guesses from them, when it resumes,
which hook that was. The guesses miss: a batch too many after the end of an epoch, epochs that end early,
validations left out, logged steps that are off by one. So every checkpoint is written as if it had been saved
between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from v1lit.data.datamodule import V1DataModule

Checkpoint = Mapping[str, Any]
Limits = tuple[int, int | None]
"""Steps and epochs."""

# ------------------------------------------------------------------ what a checkpoint holds


def is_checkpoint(content: object) -> bool:
    """Whether the content of a file is a checkpoint of a training run."""
    return isinstance(content, dict) and "state_dict" in content and "loops" in content


def weights_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The state dict of the module."""
    weights: Mapping[str, Any] = checkpoint["state_dict"]
    return weights


def put_weights(checkpoint: dict[str, Any], weights: Mapping[str, Any]) -> None:
    """Give a checkpoint another state dict of the module."""
    checkpoint["state_dict"] = weights


def options_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the module is made of: its arguments."""
    options: dict[str, Any] = checkpoint.get(LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
    return options


def optimizer_states_of(checkpoint: Checkpoint) -> list[dict[str, Any]] | None:
    """What the `state_dict` of every optimizer returned, None where only weights were saved."""
    return checkpoint.get("optimizer_states")


def without_optimizers(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as if only weights had been saved."""
    return {name: value for name, value in checkpoint.items() if name != "optimizer_states"}


def without_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint without the states of module and optimizers."""
    return {name: value for name, value in without_optimizers(checkpoint).items() if name != "state_dict"}


def with_tensors(
    rest: Checkpoint, weights: Mapping[str, Any], optimizers: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """A whole checkpoint; without the states of optimizers where they are None."""
    states = {} if optimizers is None else {"optimizer_states": optimizers}
    return {**rest, "state_dict": weights, **states}


def steps_of(checkpoint: Checkpoint) -> int:
    """Optimizer steps that were done."""
    return int(checkpoint["global_step"])


def epochs_of(checkpoint: Checkpoint) -> int:
    """Whole epochs that were done."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"])


def callback_states(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state of every callback by its `state_key`."""
    states: dict[str, Any] = checkpoint.get("callbacks", {})
    return states


def data_state(checkpoint: Checkpoint, data: LightningDataModule) -> dict[str, Any]:
    """What the data module's `state_dict` returned; empty where training had not read yet."""
    state: dict[str, Any] = checkpoint.get(type(data).__qualname__, {})
    return state


def set_batches_done(checkpoint: Checkpoint, done: int) -> None:
    """Set how many batches of the current epoch count as done.

    The counters stand apart by one where the checkpoint was saved between the end of a batch and the count of
    it; this difference is kept.
    """
    current = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    shift = done - current["ready"]
    for name in ("ready", "started", "processed", "completed"):
        current[name] += shift


def align(checkpoint: Checkpoint, data: V1DataModule) -> None:
    """Let Lightning count the batches of the epoch as the data module divides them now.

    It counts the batches of a rank, which differ where a run resumes with other ranks or accumulation, or
    from a checkpoint that was saved amid the batches of a step. To be called in the module's
    `on_load_checkpoint`, before the data module's state is loaded.
    """
    done = data.batches_done(data_state(checkpoint, data), steps_of(checkpoint))
    if done is not None:
        set_batches_done(checkpoint, done)


def put_between_steps(checkpoint: Checkpoint, trainer: Trainer) -> None:
    """Change the counters to those after a step, or after its epoch when that ends with it."""
    loops, at_epoch_end = checkpoint["loops"]["fit_loop"], ends_epoch(trainer)
    batches = loops["epoch_loop.batch_progress"]
    for counters in (batches["total"], batches["current"]):
        _set_all(counters, counters["processed"])
    within_epoch = batches["current"]["processed"] > 0 and not at_epoch_end
    epochs = loops["epoch_progress"]
    for counters in (epochs["total"], epochs["current"]):
        if within_epoch:
            begun = counters["started"]
            counters.update(ready=begun, processed=begun - 1, completed=begun - 1)
        else:
            _set_all(counters, counters["started"] if at_epoch_end else counters["processed"])
    if at_epoch_end:
        _set_all(batches["current"], 0)
        batches["is_last_batch"] = False
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for counters in (validation["total"], validation["current"]):
        _set_all(counters, 0)
    validation["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step


def _set_all(counters: dict[str, Any], value: int) -> None:
    counters.update(dict.fromkeys(counters, value))


# ------------------------------------------------------------------ where a run is


def trainer_of(module: LightningModule) -> Trainer | None:
    """The module's trainer; None where it has none, of which `module.trainer` makes an error."""
    return module._trainer


def ends_epoch(trainer: Trainer) -> bool:
    """Whether the batch that was trained last is the last one of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def is_whole_step(trainer: Trainer) -> bool:
    """Whether the optimizer has used every gradient there is."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def validates_now(trainer: Trainer) -> bool:
    """At the end of a training batch: whether a validation comes before the next one."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    if fetcher is None or not loop._should_check_val_fx(fetcher):
        return False
    loop.val_loop.setup_data()
    return not loop.val_loop.skip


# ------------------------------------------------------------------ what a run does


def validate(trainer: Trainer) -> None:
    """Validate between two steps, as the fit loop does it."""
    loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    first, loop._batches_that_stepped = connector._first_loop_iter, trainer.global_step - 1
    trainer.validating = True
    loop.val_loop.restarting = False
    loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter = first


def lift_limits(trainer: Trainer) -> Limits:
    """Take a run's limits away and return them: Lightning does not even begin where no step is left."""
    before = trainer.fit_loop.epoch_loop.max_steps, trainer.fit_loop.max_epochs
    set_limits(trainer, (-1 if trainer.max_steps == -1 else 2**62, -1))
    return before


def set_limits(trainer: Trainer, limits: Limits) -> None:
    """Set the steps and the epochs that the run may have."""
    trainer.fit_loop.epoch_loop.max_steps, trainer.fit_loop.max_epochs = limits


def count_logged_steps(trainer: Trainer) -> None:
    """At the beginning of a batch: the logged step is the number of steps done before it."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def ask_nobody_about_sigterm(trainer: Trainer) -> None:
    """Keep Lightning from asking all ranks before every batch about a SIGTERM, which waits for the GPU."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def leave_requeueing(trainer: Trainer) -> None:
    """Keep Lightning from saving, and queueing a job of SLURM again, inside of its handler of signals.

    Other ranks may be amid a step then, and wait for ever; the run saves at the end of the step by itself.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False


def around_environment(trainer: Trainer, around: Callable[[], AbstractContextManager[None]]) -> None:
    """Do something before and after the strategy makes the process group, in every process of the run."""
    strategy = trainer.strategy
    original = strategy.setup_environment

    def setup_environment() -> None:
        with around():
            original()

    strategy.setup_environment = setup_environment  # type: ignore[method-assign]


# ------------------------------------------------------------------ optimizers and their schedule


def unscale_before_step(optimizer: Optimizer) -> None:
    """Let float16's loss scale be undone before the optimizer's step, although a fused step could undo it.

    Lightning refuses to clip gradients where the step undoes it; so clipping works in every precision.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def follow_schedule(trainer: Trainer) -> None:
    """Set the learning rates by the schedule of this run.

    A checkpoint brings those of its own schedule, which may have had another total.
    """
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if isinstance(schedule, LambdaLR):
            rates = [
                base * factor(schedule.last_epoch)
                for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            ]
            for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            schedule._last_lr = rates


def use_group_options(trainer: Trainer, options: Sequence[Mapping[str, Any]]) -> None:
    """Give the optimizer's groups their options (`lr`, `betas`, ...) again, and follow the schedule.

    A checkpoint brings those that it was written with. How the kernel goes about it stays that of its state.
    """
    kept = {"params", "fused", "foreach", "capturable"}
    for optimizer in trainer.optimizers if options else []:
        for group, own in zip(optimizer.param_groups, options, strict=True):
            group.update({name: value for name, value in own.items() if name not in kept})
    for config in trainer.lr_scheduler_configs if options else []:
        if isinstance(config.scheduler, LambdaLR):
            config.scheduler.base_lrs = [group["initial_lr"] for group in options]
    follow_schedule(trainer)
