"""What happens beside the training steps: weighing the final weights."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from v1lit.data.batch import Batch


class ValidateAtEnd(Callback):
    """Validates after the last step, wherever the interval falls: the final weights are weighed as well."""

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        steps = 0 <= trainer.max_steps <= trainer.global_step
        last_epoch = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
        if steps or (last_epoch and trainer.is_last_batch):
            # Told to stop, Lightning validates first; but only in epochs that ask for validation.
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1
