"""How long a run is."""

from __future__ import annotations

from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from v1lit.data.datamodule import V1DataModule
from v1lit.training.config import OptimizerConfig


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole run; None where nobody knows. All ranks must call it, the first time."""
    steps = trainer.estimated_stepping_batches  # which also loads the data
    of_epochs = steps_of_epochs(trainer)
    if of_epochs is not None:
        return of_epochs if trainer.max_steps < 0 else min(of_epochs, trainer.max_steps)
    # -1 from Lightning: an epoch's batches cannot be counted, and max_steps is not set.
    return int(steps) if 0 <= steps < float("inf") else None


def ends_run(trainer: Trainer, epoch_ends: bool) -> bool:
    """Whether no step is left for the run; `epoch_ends`: with the current step."""
    steps = 0 <= trainer.max_steps <= trainer.global_step
    last_epoch = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
    return steps or (last_epoch and epoch_ends)


def steps_of_epochs(trainer: Trainer) -> int | None:
    """Optimizer steps of all epochs; None where it is not known how many or how long these are.

    Where a run resumes with batches of other sizes or on other ranks, the steps that it has made already are
    counted as they were made. Epochs of filled rows, whose length Lightning does not know, are planned.
    """
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if epochs is None or epochs < 0:
        return None
    data = trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it
    if isinstance(data, V1DataModule):
        return data.planned_steps(epochs)
    return None if batches == float("inf") else epochs * -(-int(batches) // trainer.accumulate_grad_batches)


def check_end(trainer: Trainer, config: OptimizerConfig, steps: int | None) -> None:
    """Refuse a schedule that needs a number of steps nobody knows; say where epochs may end first.

    steps: of `total_steps`.
    """
    unknown = "the length of an epoch is not known without an index and, with packing, token lengths"
    if steps is None and (config.schedule != "constant" or config.warmup > 0):
        endless = trainer.max_epochs in (None, -1)
        ways = "trainer.max_steps or trainer.max_epochs" if endless else f"trainer.max_steps ({unknown})"
        constant = "" if config.schedule == "constant" else "model.optimizer.schedule=constant and "
        raise ValueError(
            f"the {config.schedule} schedule with a warm-up of {config.warmup:g} needs to know its end; "
            f"set {ways}, or {constant}model.optimizer.warmup=0"
        )
    if steps is not None and trainer.max_epochs not in (None, -1) and steps_of_epochs(trainer) is None:
        rank_zero_info(
            f"the schedule is made for trainer.max_steps={steps}; it is cut off if "
            f"trainer.max_epochs={trainer.max_epochs} ends the run before: {unknown}"
        )
