"""The Trainer's shares and intervals against the batches that an epoch has, before weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_runs import fit, make_data, without_index, written
from lightning import Trainer

from v1lit.data.config import PackingConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.loading.trainer_limits import check_limits


def trainer(**options: Any) -> Trainer:
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **options)


def unasked() -> int:
    raise AssertionError("the batches were counted though nothing depends on them")


def check(train: int | None, val: int | None, **options: Any) -> None:
    check_limits(trainer(**options), lambda: train, lambda: val)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"limit_train_batches": 0.05},
            r"limit_train_batches is 0.05; that is less than one of the 10 training .*\n.*0.1",
        ),
        (
            {"limit_val_batches": 0.4},
            r"limit_val_batches is 0.4; that is less than one of the 2 .*\n.*0.5",
        ),
        ({"overfit_batches": 0.2}, r"overfit_batches is 0.2; that is less than one of the 2 validation"),
        ({"overfit_batches": 0.05}, r"overfit_batches is 0.05; that is less than one of the 10 training"),
        ({"val_check_interval": 11}, r"val_check_interval is 11; an epoch has 10 batches.*\n.*null"),
        ({"val_check_interval": 4, "limit_train_batches": 3}, r"is 4; an epoch has 3 batches"),
        ({"val_check_interval": 4, "limit_train_batches": 0.3}, r"is 4; an epoch has 3 batches"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(10, 2, **options)


@pytest.mark.parametrize(
    "options", [{"limit_train_batches": 0.5}, {"overfit_batches": 0.5}, {"val_check_interval": 0.5}]
)
def test_a_share_of_an_epoch_of_unknown_length_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not known before it is read.*\n?.*a number of batches"):
        check(None, 2, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"limit_train_batches": 0.1},
        {"limit_val_batches": 0.5},
        {"overfit_batches": 0.5},
        {"val_check_interval": 10},
        {"val_check_interval": 0.01},
        {"val_check_interval": 1000, "check_val_every_n_epoch": None},
        {"val_check_interval": 1000, "limit_val_batches": 0},
    ],
)
def test_what_can_be_is_let_through(options: dict[str, Any]) -> None:
    check(10, 2, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit_train_batches": 2, "limit_val_batches": 3},
        {"overfit_batches": 2},
        {"val_check_interval": "00:00:10:00"},
        {"val_check_interval": 5, "check_val_every_n_epoch": None},
    ],
)
def test_nothing_is_counted_unasked(options: dict[str, Any]) -> None:
    check_limits(trainer(**options), unasked, unasked)


def test_the_data_module_counts_as_its_loaders_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "train", 13)
    written(tmp_path / "val", 7, first=100)
    counted: list[int | None] = []
    monkeypatch.setattr(
        "v1lit.data.datamodule.check_limits", lambda _, train, val: counted.extend([train(), val()])
    )
    data = make_data(tmp_path, tmp_path)
    data.check_limits(trainer(accumulate_grad_batches=2))
    data.trainer = trainer(accumulate_grad_batches=2)
    assert counted == [len(data.train_dataloader()), len(data.val_dataloader())] == [8, 4]
    packed = make_data(tmp_path, tmp_path, packing=PackingConfig(260))
    packed.check_limits(trainer())
    assert counted[2:] == [None, 4]


def test_lightning_users_are_told_before_the_model_is_made(tmp_path: Path) -> None:
    written(tmp_path / "train", 6)
    data: V1DataModule = make_data(tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"limit_train_batches is 0.1; that is less than one of the 3"):
        fit(data, tmp_path, limit_train_batches=0.1)
    unindexed = make_data(without_index(tmp_path / "train").parent, tmp_path)
    with pytest.raises(ValueError, match=r"trainer.limit_train_batches is 0.5; that is a share of an epoch"):
        fit(unindexed, tmp_path, limit_train_batches=0.5)
