"""`Notes`: what each rank of a launched run reads, for `soak.py --ranks`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

PAUSE = 0.05
"""Seconds that a micro-batch and a validation take longer, to be killed in."""
VALIDATING = Path("validating")
"""Is there, in the folder of the recipe, while the run validates."""


class Notes(Callback):
    """Writes epoch, step, loss and examples of every micro-batch to a file per rank."""

    step = 0

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches  # Lightning has divided it
        line = json.dumps([trainer.current_epoch, self.step, loss, list(batch.ids)])
        with open(f"read-{trainer.global_rank}.jsonl", "a") as file:
            file.write(line + "\n")
        time.sleep(PAUSE)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        VALIDATING.touch()
        time.sleep(PAUSE)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        VALIDATING.unlink(missing_ok=True)
