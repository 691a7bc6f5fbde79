"""One run from start to end: train, export the best, report on held-out examples."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.table import Table

from v1lit.console import Console, screen
from v1lit.data.datamodule import V1DataModule
from v1lit.inference.predictor import Predictor
from v1lit.training.callbacks import ValidateAtEnd
from v1lit.training.checkpoints import FOLDER, LastCheckpoint, checkpoint_to_resume
from v1lit.training.config import RunConfig
from v1lit.training.module import V1Module
from v1lit.training.progress import RunProgress
from v1lit.training.quiet import no_weights_bar
from v1lit.training.report import Held, answer_held_out, draw_pictures, score
from v1lit.training.stopping import StopRequests
from v1lit.training.throughput import Throughput


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
        Throughput(),
        ValidateAtEnd(),
        RunProgress(),
    ]
    loggers = [
        CSVLogger(folder, name="", version=_free_name(folder, "csv")),  # it deletes what is in its folder
        TensorBoardLogger(folder, name="", version="tensorboard"),
    ]
    return {
        "callbacks": callbacks,
        "logger": loggers,
        "default_root_dir": str(folder),
        "enable_model_summary": False,
    }


def run_training(
    module: V1Module, data: V1DataModule, trainer: Trainer, run: RunConfig, folder: Path
) -> dict[str, float]:
    """Train, then export the best model and report. Gives the numbers that `metrics.json` holds.

    Everything is written to `folder`: `checkpoints/`, `csv/` (`csv-2/`, ... after resuming), `tensorboard/`,
    `model/` (the export), `pictures/` and `metrics.json`. Raises ValueError if `run.resume` finds nothing,
    and RunStopped if the run was stopped while it trained.
    """
    resume = checkpoint_to_resume(run.resume, folder)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # a connector sets it
        if isinstance(callback, Throughput) and run.peak_tflops is not None:
            callback.peak_tflops = run.peak_tflops
    start = time.perf_counter()
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    metrics = {"train/seconds": time.perf_counter() - start, "train/steps": float(trainer.global_step)}
    if trainer.interrupted:
        raise KeyboardInterrupt
    metrics |= {
        name: float(value)
        for name, value in trainer.logged_metrics.items()
        if "/" in name and "val/" not in name
    }
    if not _load_best(module, trainer):
        trainer.print("no validation chose a best checkpoint: the last weights are taken")
    if trainer.is_global_zero:
        predictor = Predictor(module.model, data.processor)
        if run.export:
            export(predictor, folder / "model")
        held: list[Held] = []
        if run.report_examples and data.has_val:
            with torch.inference_mode():
                held = list(
                    answer_held_out(
                        predictor,
                        data.examples("val"),
                        run.report_examples,
                        run.report_batch_size,
                        run.report_max_new_tokens,
                    )
                )
            metrics |= score(held)
            draw_pictures(held[: run.pictures], folder / "pictures")
        metrics |= _best_metrics(trainer)
        write_json(folder / "metrics.json", metrics)
        print_report(metrics, folder, screen())
    return metrics


def export(predictor: Predictor, folder: Path) -> None:
    """Write model and processor into one folder, whole or not at all, that `v1lit.load` opens."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with no_weights_bar():
            predictor.model.save_pretrained(aside)
        predictor.processor.save_pretrained(aside)
        aside.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, content: dict[str, float]) -> None:
    """Write sorted keys, null for what is not finite; the file appears whole or not at all."""
    aside = path.with_name(f".{path.name}.part")
    # JSON has no NaN, which stands for "nothing was counted".
    known = {name: value if math.isfinite(value) else None for name, value in sorted(content.items())}
    aside.write_text(json.dumps(known, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def print_report(metrics: dict[str, float], folder: Path, console: Console) -> None:
    """The table at the end of a run: what was measured, chance beside it, and where everything is."""
    table = Table(
        title=f"held out: {int(metrics.get('val/examples', 0))} examples, generated by the model alone"
    )
    for column in ("", "model", "chance"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {
        "first pointer in the true region": "pointer_first_in_region",
        "overlap with the true region (IoU of patches)": "region_iou",
        "right answers": "answer_accuracy",
    }
    for title, name in rows.items():
        if f"val/{name}" in metrics:
            chance = metrics.get(f"chance/{name}")
            table.add_row(title, f"{metrics[f'val/{name}']:.1%}", "" if chance is None else f"{chance:.1%}")
    if table.row_count:
        console.print(table)
    console.print(
        f"trained {int(metrics['train/steps'])} steps in {metrics['train/seconds']:.0f} s; all results in"
    )
    console.print(str(folder), soft_wrap=True)


def _load_best(module: LightningModule, trainer: Trainer) -> bool:
    """Put the best checkpoint's weights into the module; False where validation chose none."""
    checkpoint = trainer.checkpoint_callback
    path = Path(getattr(checkpoint, "best_model_path", ""))
    if getattr(checkpoint, "monitor", None) is None or not path.is_file():
        return False
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(state["state_dict"])
    return True


def _free_name(folder: Path, name: str) -> str:
    """`name`, or `name-2`, `name-3`, ... where that is taken."""
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(one for one in names if not (folder / one).exists())


def _best_metrics(trainer: Trainer) -> dict[str, float]:
    score = getattr(trainer.checkpoint_callback, "best_model_score", None)
    return {} if score is None else {"val/loss": float(score)}
