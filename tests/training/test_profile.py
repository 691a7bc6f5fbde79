"""A profile is of the batches that were asked for, whole or not there, and leaves training as it is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from v1lit.training.profile import Profile

pytestmark = pytest.mark.dependencies


@pytest.fixture
def fit(make_data: Any, make_module: Any, make_trainer: Any) -> Any:
    def fit(profile: Profile, steps: int) -> Any:
        trainer = make_trainer(callbacks=[profile], max_steps=steps, max_epochs=-1, limit_val_batches=0)
        trainer.fit(make_module(), datamodule=make_data(batch_size=2))
        return trainer

    return fit


@pytest.mark.slow
def test_trace_operations_and_memory_of_the_batches_asked_for(fit: Any, tmp_path: Path) -> None:
    fit(Profile(skip=1, batches=2), steps=5)
    assert {one.name for one in (tmp_path / "profile").iterdir()} == {
        "trace.json.gz",
        "operations.txt",
        "memory.txt",
    }
    with gzip.open(tmp_path / "profile/trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    steps = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")}
    assert len(steps) == 2
    assert "aten::mm" in (tmp_path / "profile/operations.txt").read_text()
    assert "Self CPU Mem" in (tmp_path / "profile/memory.txt").read_text()


def test_a_run_that_is_too_short_says_so_and_writes_nothing(fit: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="it takes 4 batches, and training ended after 2"):
        fit(Profile(skip=1, batches=3), steps=2)
    assert not (tmp_path / "profile").exists()


def test_a_profile_that_could_not_be_written_leaves_the_old_one(
    fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile/trace.json.gz").write_text("old")

    def fail(self: Profile, path: Path, *_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Profile, "_write_table", fail)
    with pytest.raises(OSError, match="no space left"):
        fit(Profile(skip=1, batches=1), steps=3)
    assert (tmp_path / "profile/trace.json.gz").read_text() == "old"
    assert not list(tmp_path.glob(".profile*"))


@pytest.mark.parametrize("name", ["skip", "batches", "rows"])
def test_options_out_of_range_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"Profile: {name} is 0"):
        Profile(**{name: 0})


@pytest.mark.parametrize("recipe", ["tiny_qwen", "qwen_v1g"])
def test_the_trainer_part_goes_on_top_of_a_recipe(recipe: str) -> None:
    from v1lit.cli.recipe import compose
    from v1lit.cli.recipe_cli import RecipeCLI

    composed = compose(recipe, ["--trainer.callbacks=configs/trainer/profile.yaml"])
    parsed = RecipeCLI(composed, parse_only=True)
    made = parsed.parser.instantiate_classes(parsed.config)["trainer"]["callbacks"]
    assert [(type(one), one.skip, one.batches) for one in made] == [(Profile, 5, 3)]
    before = compose(recipe).config["trainer"]
    assert {k: v for k, v in composed.config["trainer"].items() if k != "callbacks"} == before
