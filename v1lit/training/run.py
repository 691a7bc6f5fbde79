"""One run from start to end: train, export the best, report on held-out examples."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from v1lit.data.datamodule import V1DataModule
from v1lit.files import free_path
from v1lit.training.answers import Answers
from v1lit.training.checkpoints import FOLDER, LastCheckpoint, checkpoint_to_resume, newest_checkpoint
from v1lit.training.config import RunConfig
from v1lit.training.module import V1Module
from v1lit.training.progress import RunProgress
from v1lit.training.results import ChosenWeights, make_results
from v1lit.training.several_ranks import together
from v1lit.training.stopping import StopRequests
from v1lit.training.strategies import sharded_strategy
from v1lit.training.throughput import Throughput
from v1lit.training.validate_at_end import ValidateAtEnd


def trainer_defaults(
    folder: Path, checkpoint_every: int | None = None, requests: StopRequests | None = None
) -> dict[str, Any]:
    """Loggers and callbacks of a run in `folder`, as arguments of Lightning's Trainer.

    Checkpoints come every `checkpoint_every` optimizer steps, else by the clock; `requests` can stop the run.
    """
    callbacks: list[Callback] = [
        ModelCheckpoint(
            dirpath=folder / FOLDER,
            filename="best",
            monitor="val/loss",
            mode="min",
            enable_version_counter=False,
            save_on_train_epoch_end=False,  # before `last.ckpt`, which says which one is the best
        ),
        LastCheckpoint(folder / FOLDER, checkpoint_every, requests),
        Answers(),
        Throughput(),
        ValidateAtEnd(),
        RunProgress(),
    ]
    loggers = [
        # It deletes what is in its folder.
        CSVLogger(folder, name="", version=free_path(folder / "csv").name),
        TensorBoardLogger(folder, name="", version="tensorboard"),
    ]
    return {
        "callbacks": callbacks,
        "logger": loggers,
        "default_root_dir": str(folder),
        "enable_model_summary": False,
    }


def run_training(
    module: V1Module,
    data: V1DataModule,
    trainer: Trainer,
    run: RunConfig,
    folder: Path,
    recipe: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Train, then export the best model and report. Returns what `metrics.json` holds.

    Everything is written to `folder`: `checkpoints/`, `csv/` (`csv-2/`, ... after resuming), `tensorboard/`,
    `model/` (the export), `pictures/` and `metrics.json`; on several ranks also `logs/`. On these, `recipe`
    (resolved, by key) is compared between ranks. Raises ValueError if `run.resume` finds nothing,
    RunStopped if the run was stopped while it trained, and ResultsIncompleteError if a part of what follows
    could not be made.
    """
    resume = checkpoint_to_resume(run.resume, folder)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # a connector sets it
        if isinstance(callback, Throughput) and run.peak_tflops is not None:
            callback.peak_tflops = run.peak_tflops
        if isinstance(callback, Answers):
            callback.run = run
    start = time.perf_counter()
    with together(trainer, module, data, run, folder, recipe):
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    metrics = {"train/seconds": time.perf_counter() - start, "train/steps": float(trainer.global_step)}
    if trainer.interrupted:
        raise KeyboardInterrupt
    metrics |= {
        name: float(value)
        for name, value in trainer.logged_metrics.items()
        if "/" in name and "val/" not in name
    }
    if trainer.is_global_zero:
        # The trainer has cleared its device.
        device, weights = trainer.strategy.root_device, _weights(trainer, folder)
        if sharded_strategy(trainer) is not None:
            # This rank has a part of the weights only; a checkpoint has them all.
            module, weights = V1Module(**module.options), replace(weights, load=weights.kept)
        return make_results(module, data, run, folder, metrics, weights, device)
    return metrics


def _weights(trainer: Trainer, folder: Path) -> ChosenWeights:
    """What validation chose, else what the module holds after the last step."""
    callback = trainer.checkpoint_callback
    best = Path(getattr(callback, "best_model_path", "") or "none")
    if getattr(callback, "monitor", None) is None or not best.exists():
        trainer.print("no validation chose a best checkpoint: the last weights are taken")
        return ChosenWeights(None, newest_checkpoint(folder))
    score = getattr(callback, "best_model_score", None)
    return ChosenWeights(best, best, None if score is None else float(score))
