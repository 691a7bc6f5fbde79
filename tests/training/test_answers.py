"""`run.answers_at_validation`: what a model answers is measured while it trains."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from v1lit.training.config import RunConfig
from v1lit.training.run import run_training, trainer_defaults


def train(
    folder: Path, make_data: Any, make_module: Any, make_trainer: Any, **run: Any
) -> tuple[list[dict[str, str]], dict[str, float]]:
    """Rows of `metrics.csv` that hold a validation, and `metrics.json`."""
    options = trainer_defaults(folder)
    options["callbacks"] = options["callbacks"][:-1]  # no progress bar
    trainer = make_trainer(
        max_steps=4, max_epochs=-1, val_check_interval=2, enable_checkpointing=True, **options
    )
    torch.manual_seed(0)
    settings = {"report_examples": 3, "report_max_new_tokens": 8, "pictures": 0, "export": False}
    run_training(make_module(), make_data(), trainer, RunConfig(**{**settings, **run}), folder)
    with (folder / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/loss")]
    return rows, json.loads((folder / "metrics.json").read_text())


def test_every_validation_generates_and_logs_what_the_report_measures(
    make_data: Any, make_module: Any, make_trainer: Any, tmp_path: Path
) -> None:
    rows, metrics = train(tmp_path, make_data, make_module, make_trainer, answers_at_validation=3)
    assert len(rows) == 2
    best = min(rows, key=lambda row: float(row["val/loss"]))
    names = [name for name in metrics if name.startswith("val/") and name in rows[0]]
    assert {"val/answer_accuracy", "val/region_iou", "val/pointer_first_in_region"} <= set(names)
    for name in names:
        assert float(best[name]) == pytest.approx(metrics[name]), name


def test_nothing_is_generated_unless_it_is_asked_for_and_training_stays_the_same(
    make_data: Any, make_module: Any, make_trainer: Any, tmp_path: Path
) -> None:
    without, _ = train(tmp_path / "a", make_data, make_module, make_trainer)
    with_answers, _ = train(tmp_path / "b", make_data, make_module, make_trainer, answers_at_validation=2)
    assert "val/answer_accuracy" not in without[0]
    assert [row["val/loss"] for row in without] == [row["val/loss"] for row in with_answers]
