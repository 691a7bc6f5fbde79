"""Runs of a module with three weights on numbered batches, that are cut off at any hook and gone on with."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from v1lit.training.checkpoints import LastCheckpoint
from v1lit.training.quiet import quiet
from v1lit.training.stopping import RunStopped
from v1lit.training.validate_at_end import ValidateAtEnd


class Killed(Exception):  # noqa: N818
    """Instead of SIGKILL: nothing is saved after it."""


@dataclass(frozen=True)
class Plan:
    """What is trained."""

    batches: int
    """Of an epoch."""
    sized: bool
    """Whether the loader knows how many they are."""
    options: dict[str, Any]
    """Of the Trainer."""
    every: int = 2
    """Steps between checkpoints."""


@dataclass
class Record:
    """What a run, in however many parts, did at last: by step, what a repeated step did the last time."""

    batches: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    validated: dict[int, float] = field(default_factory=dict)
    logged: dict[tuple[str, int], str] = field(default_factory=dict)
    weights: list[float] = field(default_factory=list)
    best: float = 0.0

    def go_back(self, step: int) -> None:
        """Forget what will be done again from this step on."""
        for done in (self.batches, self.rates):
            for number in [number for number in done if number >= step]:
                del done[number]
        for number in [number for number in self.validated if number > step]:
            del self.validated[number]


class Numbers(LightningDataModule):
    """Batches that are their epoch and number; resumes behind the batch that was used last."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.last: tuple[int, int] | None = None
        self._resume: tuple[int, int] | None = None

    def train_dataloader(self) -> Any:
        return SizedLoader(self) if self.plan.sized else Loader(self)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.arange(3))

    def begin(self) -> tuple[int, int]:
        resume, self._resume = self._resume, None
        begin = (self.trainer.current_epoch, 0)
        return begin if resume is None else max(begin, (resume[0], resume[1] + 1))

    def used(self, batch: Tensor) -> None:
        epoch, number = batch.tolist()
        self.last = (epoch + 1, -1) if self.trainer.is_last_batch else (epoch, number)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.last is None else {"last": list(self.last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resume = self.last = tuple(state_dict["last"])


class Loader:
    """An epoch's batches, from where the run has come."""

    def __init__(self, data: Numbers) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Tensor]:
        epoch, start = self.data.begin()
        for number in range(start, self.data.plan.batches):
            yield torch.tensor([epoch, number])


class SizedLoader(Loader):
    """The same, of known length."""

    def __len__(self) -> int:
        return self.data.plan.batches


class Weights(LightningModule):
    """Its weights depend on every batch, the order and the learning rates."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.record = record

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.trainer.datamodule.used(batch)  # type: ignore[attr-defined]
        epoch, number = batch.tolist()
        self.record.batches.setdefault(self.global_step, []).append((epoch, number))
        x = torch.tensor([epoch + 1.0, number * 0.37 + 1, (epoch + number) % 5], dtype=torch.float64)
        loss = ((self.weight * x).sum() - x.sum()) ** 2
        self.log("loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.record.rates[self.global_step] = optimizer.param_groups[0]["lr"]
        self.log("rate", optimizer.param_groups[0]["lr"])

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", (self.weight - 1).abs().sum())

    def on_validation_epoch_end(self) -> None:
        self.record.validated[self.global_step] = float(self.weight.sum())

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Interrupt(Callback):
    """Counts hooks; at one of them, the run is killed or, when polite, asked to stop."""

    def __init__(self, at: int | None, last: LastCheckpoint, polite: bool) -> None:
        self.at, self.last, self.polite, self.calls = at, last, polite, 0

    def _call(self, trainer: Trainer, *args: Any, **options: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            if not self.polite:
                raise Killed
            self.last.requests.received = 2

    on_train_epoch_start = on_train_batch_start = on_train_batch_end = on_train_epoch_end = _call
    on_validation_start = on_validation_batch_start = on_validation_batch_end = on_validation_end = _call
    on_train_end = _call


def run_part(
    folder: Path, plan: Plan, record: Record, at: int | None = None, polite: bool = False
) -> int | None:
    """Resume in `folder`, up to hook number `at`; returns the number of hooks of a run that ended."""
    checkpoints = folder / "checkpoints"
    last = LastCheckpoint(checkpoints, plan.every)
    best = ModelCheckpoint(checkpoints, "best", monitor="val/loss", save_on_train_epoch_end=False)
    interrupt = Interrupt(at, last, polite)
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=f"csv-{len(list(folder.glob('csv-*')))}"),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=str(folder),
        callbacks=[ValidateAtEnd(), interrupt, best, last],
        **plan.options,
    )
    resume = last.path if last.path.exists() else None
    record.go_back(torch.load(resume, weights_only=True)["global_step"] if resume else 0)
    last.requests.patient = True
    module = Weights(record)
    try:
        with quiet():
            trainer.fit(
                module, datamodule=Numbers(plan), ckpt_path=resume, weights_only=True if resume else None
            )
    except (Killed, RunStopped):
        return None
    record.weights = module.weight.tolist()
    record.best = float(best.best_model_score)  # type: ignore[arg-type]
    record.logged = read_logs(folder)
    return interrupt.calls


def read_logs(folder: Path) -> dict[tuple[str, int], str]:
    """What was logged for every step at last."""
    logged: dict[tuple[str, int], str] = {}
    for path in sorted(folder.glob("csv-*/metrics.csv"), key=lambda path: int(path.parent.name[4:])):
        with path.open() as file:
            for row in csv.DictReader(file):
                logged |= {
                    (name, int(row["step"])): row[name]
                    for name in ("loss", "rate", "val/loss")
                    if row.get(name)
                }
    return logged
