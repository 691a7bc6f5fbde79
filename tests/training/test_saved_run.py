"""The folder of a run, whatever state it is in: which checkpoint is reported on, and what is known of it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from v1lit.training.saved_run import measured, saved_weights


def save(path: Path, step: int, best: Path | None = None) -> Path:
    state: dict[str, Any] = {"monitor": "val/loss", "best_model_path": "", "best_model_score": None}
    if best is not None:
        state |= {"best_model_path": str(best), "best_model_score": torch.tensor(0.25)}
    path.parent.mkdir(parents=True, exist_ok=True)
    callbacks = {"ModelCheckpoint{'monitor': None}": {"monitor": None}, "ModelCheckpoint{...}": state}
    torch.save({"state_dict": {}, "loops": {}, "global_step": step, "callbacks": callbacks}, path)
    return path


def test_the_best_checkpoint_is_taken_also_where_the_folder_was_moved(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "before/checkpoints/best.ckpt"
    best = save(folder / "checkpoints/best.ckpt", 2, elsewhere)
    save(folder / "checkpoints/last.ckpt", 4, elsewhere)
    weights, steps = saved_weights(folder)
    assert (weights.load, weights.kept, weights.val_loss, steps) == (best, best, 0.25, 4)


def test_the_best_may_lie_in_the_folder_of_the_run_that_this_one_went_on_from(tmp_path: Path) -> None:
    best = save(tmp_path / "first/checkpoints/best.ckpt", 2)
    save(tmp_path / "second/checkpoints/last.ckpt", 4, best)
    assert saved_weights(tmp_path / "second")[0].load == best


def test_a_run_that_never_validated_is_reported_on_with_its_last_weights(tmp_path: Path) -> None:
    last = save(tmp_path / "checkpoints/last.ckpt", 3)
    weights, steps = saved_weights(tmp_path)
    assert (weights.load, weights.val_loss, steps) == (last, None, 3)


def test_without_a_complete_checkpoint_there_is_nothing_to_report_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes(b"PK cut")
    with pytest.raises(ValueError, match="no complete checkpoint"):
        saved_weights(tmp_path)


def test_numbers_come_from_an_earlier_report_of_as_many_steps_else_from_the_logs(tmp_path: Path) -> None:
    for number, (name, text) in enumerate(
        [("csv-2", "step,train/loss,val/loss\n3,1.5,\n"), ("csv", "step,train/loss,train/x\n1,2.5,7\n2,,\n")]
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(text)
        os.utime(tmp_path / name / "metrics.csv", (number, number))
    assert measured(tmp_path, 4) == {"train/loss": 2.5, "train/x": 7.0, "train/steps": 4.0}
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"train/steps": 4.0, "train/seconds": 9.0, "val/region_iou": None}))
    again = measured(tmp_path, 4)
    assert math.isnan(again.pop("val/region_iou"))
    assert again == {"train/steps": 4.0, "train/seconds": 9.0}
    assert "train/seconds" not in measured(tmp_path, 5)
    path.write_text("{cut")
    assert measured(tmp_path, 4)["train/loss"] == 2.5
