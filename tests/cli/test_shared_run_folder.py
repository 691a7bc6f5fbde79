"""Processes that somebody else has started agree on one run folder, or are told to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from v1lit.cli.errors import UserError
from v1lit.cli.recipe import compose
from v1lit.cli.run_folder import VARIABLE, run_folder
from v1lit.training.config import RunConfig


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, "WORLD_SIZE", "SLURM_PROCID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def folder_of(run: RunConfig) -> Path:
    with run_folder(run, "recipe") as folder:
        (folder / "kept").touch()
        return folder


def test_the_folder_is_told_while_the_run_lasts_and_no_longer(tmp_path: Path) -> None:
    """Ranks that are launched later from the same process would write to the folder of the run before."""
    with run_folder(RunConfig(folder=str(tmp_path), name="mine"), "recipe") as folder:
        assert os.environ[VARIABLE] == str(folder)
    assert VARIABLE not in os.environ


def test_several_processes_need_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"WORLD_SIZE.*\nname it: --run\.name=NAME"):
        folder_of(RunConfig(folder=str(tmp_path)))
    assert folder_of(RunConfig(folder=str(tmp_path), name="mine")) == tmp_path / "mine"


def test_tasks_of_one_slurm_job_share_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert folder_of(RunConfig(folder=str(tmp_path))).name == "recipe-77"


def test_an_item_of_a_list_cannot_be_changed_alone(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("trainer: {callbacks: [{class_path: A}]}\n")
    with pytest.raises(UserError, match=r"trainer\.callbacks is a list; give it whole"):
        compose(str(recipe), ["--trainer.callbacks.0=B"])
