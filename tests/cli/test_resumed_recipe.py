"""Every key of a recipe is known to resumed runs, and what they refuse is refused before anything is made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from v1lit.cli.main import main
from v1lit.cli.schema import leaves
from v1lit.training.module import V1Module
from v1lit.training.resuming import CHANGES, Change

PAGE = Path(__file__).resolve().parents[2] / "docs/streaming.md"


def test_every_key_of_a_recipe_has_its_place_in_the_table() -> None:
    """Whoever adds a key decides what a resumed run does when it is changed."""
    keys = {key for key, _ in leaves()}
    assert keys <= set(CHANGES)
    others = set(CHANGES) - keys
    assert all(key.startswith("trainer.") for key in others), others  # of other versions of Lightning


def test_the_page_names_every_key_that_is_not_the_jobs_own() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("### Another recipe")[2].partition("\n## ")[0]
    named = set()
    for group, names in re.findall(r"`([a-z_.]+)\.\{([a-z_, .]+)\}`", section):
        named |= {f"{group}.{name.strip()}" for name in names.split(",")}
    named |= set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", section))
    assert {key for key, change in CHANGES.items() if change is not Change.JOB} <= named


def test_what_cannot_be_changed_is_refused_before_data_and_weights_and_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    module = V1Module({"name": "qwen2_5_vl"})  # type: ignore[arg-type]
    folder = tmp_path / "runs/a/checkpoints"
    folder.mkdir(parents=True)
    loops = {"fit_loop": {"epoch_progress": {"current": {"completed": 0}}}}
    checkpoint = {"v1lit": {"model": module.options}, "global_step": 4, "loops": loops, "state_dict": {}}
    torch.save(checkpoint, folder / "last.ckpt")
    before = sorted(tmp_path.rglob("*"))
    change = "--model.pointer.gate=true"
    assert (
        main(["run", "tiny_qwen", "--run.name=a", "--run.resume=auto", "--model.backbone.tiny={}", change])
        == 2
    )
    first, second = capsys.readouterr().err.splitlines()
    assert "model.pointer.gate was false and is true" in first
    assert "(command line" in first
    assert second.startswith("take the old value to resume")
    assert sorted(tmp_path.rglob("*")) == before
