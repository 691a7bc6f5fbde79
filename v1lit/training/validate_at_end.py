"""`ValidateAtEnd`: the final weights are validated as well."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from v1lit.data.encode.batch import Batch
from v1lit.training.lightning_internals import Limits, lift_limits, set_limits, validate, validates_now
from v1lit.training.steps import ends_run


class ValidateAtEnd(Callback):
    """Validates after the last step, wherever the interval falls.

    A run that was stopped while it validated does so again, from the start, when it resumes.
    """

    def __init__(self) -> None:
        self._due = False
        self._limits: Limits | None = None

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if ends_run(trainer, trainer.is_last_batch):
            # Told to stop, Lightning validates first; but only in epochs that ask for validation.
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1
        self._due = validates_now(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._due = False

    def state_dict(self) -> dict[str, Any]:
        return {"validation_due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._due = bool(state_dict["validation_due"])

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._due:
            self._limits = lift_limits(trainer)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._limits is not None:
            set_limits(trainer, self._limits)
            self._limits = None
            validate(trainer)
