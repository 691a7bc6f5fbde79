"""Checkpoints to resume from: written whole or not at all, at the end of a step, and found again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from v1lit.data.loading.ranks import Ranks
from v1lit.errors import OptionError
from v1lit.files import put_in_place, remove, to_disk
from v1lit.parallel.shard_files import clear, is_complete, newest_of
from v1lit.training.folder_strategy import writer_of
from v1lit.training.lightning_internals import (
    ask_nobody_about_sigterm,
    count_logged_steps,
    ends_epoch,
    follow_schedule,
    is_whole_step,
    leave_requeueing,
    put_between_steps,
    validates_now,
)
from v1lit.training.saved_state import read_checkpoint
from v1lit.training.steps import ends_run
from v1lit.training.stopping import RunStopped, StopRequests

FOLDER = "checkpoints"
"""Of a run's folder."""
LAST = "last.ckpt"
SECONDS_BETWEEN = 600.0
MOST_TIME = 0.05
"""Largest share of the time that checkpoints by the clock may take."""


class WholeFileIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, onto the disk, and renames it there; reads folders as well.

    Lightning's own writes to the system's folder for temporary files: where that is another disk, the
    checkpoint is then copied into its place, and a run that is killed meanwhile leaves half a file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        unfinished = clear(place)  # leftovers are as large as a checkpoint
        try:
            torch.save(checkpoint, unfinished)
            to_disk(unfinished)
            put_in_place(unfinished, place)
        finally:
            remove(unfinished)

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        if "://" not in str(path) and Path(path).is_dir():
            return read_checkpoint(path, optimizers=True)
        content: dict[str, Any] = super().load_checkpoint(path, *args, **options)
        return content


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, the newest state of a run, and stops the run when that is asked for.

    It is saved at the end of an optimizer step: every `every` steps or, without a number, every ten minutes
    (less often where saving would take more than 5 % of the time); after every validation; at the end; and
    when someone stops the run. On several ranks all agree after every step whether to save and to stop.

    Args:
        folder: where `last.ckpt` is written.
        every: optimizer steps between two checkpoints; None for by the clock.
        requests: who may ask to stop.
    """

    def __init__(self, folder: Path, every: int | None = None, requests: StopRequests | None = None) -> None:
        super().__init__()
        self.path = Path(folder) / LAST
        self.every = every
        self.requests = requests or StopRequests()
        self.saved_step: int | None = None
        self._due = False
        self._stop: int | None = None
        self._next = time.monotonic() + SECONDS_BETWEEN

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFileIO()
        if self.requests.active:
            ask_nobody_about_sigterm(trainer)
            leave_requeueing(trainer)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        follow_schedule(trainer)
        self._next = time.monotonic() + SECONDS_BETWEEN
        if self.requests.received is None:
            self.requests.listen()  # Lightning has taken SIGTERM
            self.requests.patient = True

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        put_between_steps(checkpoint, trainer)

    # ------------------------------------------------------------------ when to save

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not is_whole_step(trainer):
            return
        self._ask_all(trainer)
        by_steps = self.every is not None and trainer.global_step % self.every == 0
        last = trainer.should_stop or ends_run(trainer, ends_epoch(trainer))
        self._due = self._due or by_steps or last
        # What is saved before a validation has to do it again; only who must stop does that.
        if self._stop is not None or (self._due and not validates_now(trainer)):
            self.save(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **options: Any) -> None:
        # Ranks may have unequally many batches, and none may leave alone: several finish the validation.
        alone = trainer.world_size == 1 and not trainer.sanity_checking
        if alone and self.requests.patient and self.requests.received and is_whole_step(trainer):
            self._stop = self.requests.received
            self.save(trainer)
            self._stop_here(trainer, "in a validation")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._due = True
        if is_whole_step(trainer):
            self._ask_all(trainer)
            self.save(trainer)
            self._stop_here(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.saved_step != trainer.global_step and is_whole_step(trainer):
            self.save(trainer)
        if (writer := writer_of(trainer)) is not None:
            writer.settle()
        self._stop_here(trainer)
        self.requests.patient = False

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt`, in the background where a strategy can; to be called on all ranks."""
        start = time.monotonic()
        trainer.save_checkpoint(self.path, weights_only=False)
        if (writer := writer_of(trainer)) is not None and self._stop is not None:
            writer.settle()  # the run is about to end
        took = time.monotonic() - start
        self._next = time.monotonic() + max(SECONDS_BETWEEN, took / MOST_TIME)
        self.saved_step, self._due = trainer.global_step, False

    # ------------------------------------------------------------------ when to stop

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop_here(trainer)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop_here(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stop_here(trainer)  # not at the batch's end, after which its numbers are logged
        count_logged_steps(trainer)

    def _stop_here(self, trainer: Trainer, where: str = "") -> None:
        if self._stop is not None:
            raise RunStopped(self._stop, f"{where} after step {trainer.global_step}".strip())

    def _ask_all(self, trainer: Trainer) -> None:
        """Note whether any rank was told to stop, and whether the first one's clock says to save.

        A checkpoint that no rank writes any longer, in the background, gets its name.
        """
        clock = self.every is None and trainer.is_global_zero and time.monotonic() >= self._next
        writer = writer_of(trainer)
        writes = writer is not None and writer.busy
        asked = torch.tensor([self.requests.received or 0, int(clock), int(writes)])
        stop, save, writes = Ranks.of(trainer).largest(asked).tolist()
        if writer is not None and not writes:
            writer.settle()
        self._due = self._due or bool(save)
        self._stop = stop or self._stop


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run's folder, or None."""
    last = newest_of(folder / FOLDER / LAST)
    others = sorted((folder / FOLDER).glob("*.ckpt"), key=_written, reverse=True)
    return last or next(filter(is_complete, others), None)


def checkpoint_to_resume(resume: str | None, folder: Path) -> str | None:
    """`run.resume` as a file, or None where the run begins; raises OptionError for `last` without one."""
    if resume not in ("last", "auto"):
        return resume
    newest = newest_checkpoint(folder)
    if newest is None and resume == "last":
        why = (
            f"there is no complete checkpoint in {folder / FOLDER}\n"
            "begin with --run.resume=auto, or give the run.name and run.folder of the run to resume"
        )
        raise OptionError("resume", resume, why, "run")
    return None if newest is None else str(newest)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
