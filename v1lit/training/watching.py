"""`Watched`: tells the watch of this rank what the training is at."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from v1lit.cluster.lookout import PHASES
from v1lit.cluster.meeting import Meeting
from v1lit.cluster.watch import Watch
from v1lit.errors import FAILURE
from v1lit.training import attempts

LOADING, DATA, FORWARD, BACKWARD, OPTIMIZER, VALIDATION, CHECKPOINT, END = PHASES


class Watched(Callback):
    """Follows a run from hook to hook; to be the last callback, so that the others' work counts too.

    Args:
        meeting: asked when the run begins, after all ranks have met.
        after: seconds without progress after which a rank is named.
        lost_after: seconds without a sign of life from a rank after which the others end.
        folder: of the run.
    """

    def __init__(
        self, meeting: Callable[[], Meeting | None], after: float, lost_after: float, folder: Path
    ) -> None:
        self.meeting, self.after, self.lost_after, self.folder = meeting, after, lost_after, folder
        self.watch: Watch | None = None
        self._screen = os.dup(2)  # of other ranks than the first, stderr goes to a file meanwhile

    def _at(self, trainer: Trainer, phase: str, more: int = 0, part: int = 0) -> None:
        if self.watch is not None:
            stand = self.watch.stand
            self.watch.stand = replace(
                stand, phase=phase, batch=stand.batch + more, part=part, step=trainer.global_step
            )

    def end(self) -> None:
        """Give no more signs of life."""
        if self.watch is not None:
            self.watch.stop()

    def _lose(self, text: str) -> None:
        """End this process from a thread: in an exchange with a rank that is lost, nothing else can."""
        rank = 0 if self.watch is None else self.watch.meeting.place.rank
        error = f"error: {text}\n"
        sys.stderr.write(error)
        sys.stderr.flush()
        if rank > 0:
            os.write(self._screen, error.encode())
        attempts.note_failure(self.folder, rank, text)
        os._exit(FAILURE)

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        meeting = self.meeting()
        if stage == "fit" and meeting is not None:
            self.watch = Watch(meeting, self.after, self.lost_after, _say, self._lose)
            self.watch.start()

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.end()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._at(trainer, DATA, more=1)

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._at(trainer, FORWARD)

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Any) -> None:
        self._at(trainer, BACKWARD)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self._at(trainer, OPTIMIZER)

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._at(trainer, DATA, more=1)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._at(trainer, VALIDATION)

    def on_validation_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._at(trainer, VALIDATION, part=batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._at(trainer, DATA, more=1)

    def on_save_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        self._at(trainer, CHECKPOINT)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._at(trainer, END)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Say who was behind: an exchange that failed or took too long says only that it did."""
        if self.watch is not None and isinstance(exception, RuntimeError) and (who := self.watch.who()):
            sys.stderr.write(f"when this rank failed: {who}\n")
        self.end()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
