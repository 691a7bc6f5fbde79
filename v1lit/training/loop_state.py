"""Where a run is, as Lightning counts it: written so that every checkpoint is resumed exactly.

Lightning saves its counters as they stand in the middle of a hook, and guesses from them, when it resumes,
which hook that was. The guesses miss: a batch too many after the end of an epoch, epochs that end early,
validations left out, logged steps that are off by one. So every checkpoint is written as if it had been saved
between two steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Trainer
from torch.optim.lr_scheduler import LambdaLR

Counters = dict[str, Any]


def between_steps(loops: dict[str, Any], at_epoch_end: bool, global_step: int) -> None:
    """Change the state of the fit loop to that after a step, or after its epoch when that ends with it."""
    batches = loops["epoch_loop.batch_progress"]
    for counters in (batches["total"], batches["current"]):
        _all(counters, counters["processed"])
    within_epoch = batches["current"]["processed"] > 0 and not at_epoch_end
    epochs = loops["epoch_progress"]
    for counters in (epochs["total"], epochs["current"]):
        if within_epoch:
            begun = counters["started"]
            counters.update(ready=begun, processed=begun - 1, completed=begun - 1)
        else:
            _all(counters, counters["started"] if at_epoch_end else counters["processed"])
    if at_epoch_end:
        _all(batches["current"], 0)
        batches["is_last_batch"] = False
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for counters in (validation["total"], validation["current"]):
        _all(counters, 0)
    validation["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = global_step


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


def validate(trainer: Trainer) -> None:
    """Validate between two steps, as the fit loop does it."""
    loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    first, loop._batches_that_stepped = connector._first_loop_iter, trainer.global_step - 1
    trainer.validating = True
    loop.val_loop.restarting = False
    loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter = first


def count_logged_steps(trainer: Trainer) -> None:
    """At the beginning of a batch: the logged step is the number of steps done before it."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


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


def _all(counters: Counters, value: int) -> None:
    counters.update(dict.fromkeys(counters, value))
