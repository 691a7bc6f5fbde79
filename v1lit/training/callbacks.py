"""What happens beside the training steps: measuring speed, weighing the final weights."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from v1lit.data.batch import Batch
from v1lit.data.encoding import IGNORE


class Throughput(Callback):
    """Logs examples, tokens (padding included) and real tokens per second over all ranks; the padding share.

    Time spent in validation is not counted. Also sums regions that no image token sees and tokens that were
    cut.
    """

    def __init__(self) -> None:
        self._reset()
        self.unseen = 0
        self.cut = 0

    def _reset(self) -> None:
        self._examples = self._tokens = self._real = self._learned = 0
        self._start = time.perf_counter()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._reset()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._start += time.perf_counter() - self._validation_start

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._examples += len(batch)
        self._tokens += batch.input_ids.numel()
        self._real += int(batch.attention_mask.sum())
        self._learned += int((batch.labels != IGNORE).sum())
        self.unseen += batch.unseen
        self.cut += batch.cut
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # a connector sets it
        if trainer.global_step % max(1, every) != 0 or not self._tokens:
            return
        seconds = time.perf_counter() - self._start
        rate = trainer.world_size / seconds
        module.log("examples/s", self._examples * rate, prog_bar=True, logger=False, batch_size=len(batch))
        values = {
            "train/examples_per_second": self._examples * rate,
            "train/tokens_per_second": self._tokens * rate,
            "train/real_tokens_per_second": self._real * rate,
            "train/padding_share": 1.0 - self._real / self._tokens,
            "train/supervised_share": self._learned / self._real,
            "train/unseen_regions": float(self.unseen),
            "train/cut_tokens": float(self.cut),
        }
        module.log_dict(values, batch_size=len(batch))
        self._reset()


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
