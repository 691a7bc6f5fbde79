"""A run from start to end: which weights are exported, and that resuming loses nothing."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

import v1lit
from v1lit.training.config import RunConfig
from v1lit.training.progress import RunProgress
from v1lit.training.run import run_training, trainer_defaults

pytestmark = pytest.mark.dependencies

NO_REPORT = RunConfig(report_examples=0)


@pytest.fixture
def train(make_data: Any, make_module: Any, make_trainer: Any, tmp_path: Path) -> Any:
    """Runs in `tmp_path`; gives module, trainer and the numbers of `metrics.json`."""

    def train(run: RunConfig = NO_REPORT, **options: Any) -> tuple[Any, Any, dict[str, float]]:
        defaults = trainer_defaults(tmp_path)
        defaults["callbacks"] = [one for one in defaults["callbacks"] if not isinstance(one, RunProgress)]
        trainer = make_trainer(
            **{"log_every_n_steps": 1, "enable_checkpointing": True, **defaults, **options}
        )
        module = make_module()
        return module, trainer, run_training(module, make_data(), trainer, run, tmp_path)

    return train


def checkpoint(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize(
    "when",
    [
        {"max_steps": 3, "max_epochs": -1},
        {"max_steps": 3, "max_epochs": -1, "val_check_interval": 2, "check_val_every_n_epoch": None},
        {"max_steps": 3, "max_epochs": -1, "check_val_every_n_epoch": 9},
        {"max_epochs": 1, "limit_train_batches": 3, "val_check_interval": 2},
    ],
    ids=["before the first", "between two", "in an epoch without", "at the end of an epoch"],
)
def test_the_final_weights_are_validated_wherever_the_training_ends(
    train: Any, tmp_path: Path, when: dict[str, Any]
) -> None:
    _, trainer, metrics = train(**when)
    assert trainer.global_step == 3
    validated = {
        int(row["step"]): float(row["val/loss"])
        for row in rows(tmp_path / "csv/metrics.csv")
        if row["val/loss"]
    }
    assert max(validated) == 2  # steps count from 0
    best = checkpoint(tmp_path, "best")
    assert metrics["val/loss"] == pytest.approx(min(validated.values()))
    assert best["global_step"] == min(validated, key=validated.__getitem__) + 1
    assert checkpoint(tmp_path, "last")["global_step"] == 3


def test_without_any_validation_the_last_weights_are_taken_and_that_is_said(
    train: Any, tmp_path: Path, capsys: Any
) -> None:
    module, _, metrics = train(max_steps=2, limit_val_batches=0)
    assert "the last weights are taken" in capsys.readouterr().out
    assert "val/loss" not in metrics
    exported = v1lit.load(tmp_path / "model").model.state_dict()
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, exported[name]), name


def test_resuming_in_the_same_folder_keeps_what_was_logged(train: Any, tmp_path: Path) -> None:
    train(max_steps=2)
    before = (tmp_path / "csv/metrics.csv").read_text()
    last = str(tmp_path / "checkpoints/last.ckpt")
    train(RunConfig(report_examples=0, resume=last), max_steps=4)
    assert (tmp_path / "csv/metrics.csv").read_text() == before
    steps = {int(row["step"]) for row in rows(tmp_path / "csv-2/metrics.csv")}
    assert steps == {2, 3}
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 2


def test_auto_begins_a_run_and_then_goes_on_with_it(train: Any, tmp_path: Path) -> None:
    auto = RunConfig(name=tmp_path.name, report_examples=0, export=False, resume="auto")
    for steps in (2, 3):
        _, trainer, _ = train(auto, max_steps=steps)
        assert trainer.global_step == steps
    assert {int(row["step"]) for row in rows(tmp_path / "csv-2/metrics.csv")} == {2}


def test_a_run_that_ended_before_its_report_makes_it_from_its_last_checkpoint(
    train: Any, tmp_path: Path
) -> None:
    options = {"max_steps": 3, "val_check_interval": 1}
    first, _, metrics = train(**options)
    (tmp_path / "metrics.json").unlink()
    module, _, again = train(RunConfig(name=tmp_path.name, report_examples=0, resume="last"), **options)
    assert again["val/loss"] == metrics["val/loss"]
    assert again["train/steps"] == 3
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, first.model.state_dict()[name]), name
    assert (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"checkpoint_every": 0}, "run.checkpoint_every is 0"),
        ({"resume": "last"}, "give run.name"),
        ({"resume": "auto"}, "give run.name"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RunConfig(**options)
