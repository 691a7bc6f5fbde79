"""The folder of a run as it lies on the disk: what can be reported on, and what training had measured."""

from __future__ import annotations

import csv
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from v1lit.parallel.shard_files import newest_of
from v1lit.training.checkpoints import FOLDER, newest_checkpoint
from v1lit.training.lightning_internals import callback_states, steps_of
from v1lit.training.results import ChosenWeights
from v1lit.training.saved_state import read_checkpoint


def saved_weights(folder: Path) -> tuple[ChosenWeights, int]:
    """The best checkpoint of a run, else its newest, and the steps that the run has made.

    Raises ValueError where there is no complete checkpoint.
    """
    newest = newest_checkpoint(folder)
    if newest is None:
        raise ValueError(f"there is no complete checkpoint in {folder / FOLDER}, so nothing to report on")
    state = read_checkpoint(newest)
    steps = steps_of(state)
    for name, callback in callback_states(state).items():
        if name.startswith("ModelCheckpoint") and callback.get("monitor") is not None:
            best = Path(callback["best_model_path"])
            # The folder may have been moved or copied since; another run's best is where it was.
            places = (folder / FOLDER / best.name, best)
            path = next(
                (path for path in (newest_of(place) or place for place in places) if path.exists()), None
            )
            if callback["best_model_path"] and path is not None:
                score = callback.get("best_model_score")
                return ChosenWeights(path, path, None if score is None else float(score)), steps
    return ChosenWeights(newest, newest), steps


def measured(folder: Path, steps: int) -> dict[str, float]:
    """What was measured in that many steps: `metrics.json` where it is of them, else the logs of training."""
    metrics: dict[str, Any] = {}
    with suppress(FileNotFoundError, ValueError):
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    if metrics.get("train/steps") != steps:
        metrics = {**_logged(folder), "train/steps": float(steps)}
    return {name: math.nan if value is None else float(value) for name, value in metrics.items()}


def _logged(folder: Path) -> dict[str, float]:
    """The last value of everything about training in the CSV files of a run."""
    last: dict[str, float] = {}
    for path in sorted(folder.glob("csv*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                last |= {
                    name: float(value) for name, value in row.items() if name.startswith("train/") and value
                }
    return last
