"""A run whose report fails ends with exit code 1 and loses nothing; `v1lit report` makes the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from v1lit.cli.main import main
from v1lit.cli.report import newest_recipe
from v1lit.training import results

pytestmark = pytest.mark.dependencies

SMALL = [
    "tiny_qwen",
    "--data.source.options.examples=12",
    "--data.source.options.val_examples=4",
    "--data.batch_size=2",
    "--data.num_workers=0",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.enable_progress_bar=false",
    "--run.peak_tflops=1",
    "--run.report_examples=2",
    "--run.report_max_new_tokens=4",
    "--run.pictures=1",
    "--run.name=a",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_what_failed_after_training_is_made_again_without_training(monkeypatch: Any, capsys: Any) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(results, "export", full)
        patch.setattr(results, "ask_held_out", full)
        assert main(["run", *SMALL]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "export failed: OSError: [Errno 28] No space left on device" in said
    assert "report failed: OSError: [Errno 28] No space left on device" in said
    assert said[-2].startswith("error: the training is done, and its checkpoint is ")
    assert said[-2].endswith("runs/a/checkpoints/best.ckpt; but this failed: export, report")
    assert said[-1].endswith("v1lit report runs/a")
    numbers = json.loads(Path("runs/a/metrics.json").read_text())
    assert not Path("runs/a/model").exists()

    assert main(["report", "runs/a"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("from runs/a/checkpoints/best.ckpt, of a run of 2 steps")
    assert err == ""
    again = json.loads(Path("runs/a/metrics.json").read_text())
    assert {name: again[name] for name in numbers} == numbers
    assert again["val/examples"] == 2
    assert Path("runs/a/model/model.safetensors").exists()
    assert [path.name for path in Path("runs/a/pictures").iterdir()] == ["00.png"]

    control = ["--model.revisit.control=noise_copy", "--run.pictures=0", "--run.export=false"]
    assert main(["report", "runs/a", "--output", "runs/a-noise", *control]) == 0
    assert Path("runs/a-noise/metrics.json").exists()
    assert not Path("runs/a-noise/model").exists()
    assert json.loads(Path("runs/a/metrics.json").read_text()) == again

    assert main(["report", "runs/a", "--model.pointer.gate=true"]) == 2
    assert "holds the weights of another model: model.pointer.gate was false" in capsys.readouterr().err


def test_the_newest_of_a_folders_recipes_is_taken(tmp_path: Path) -> None:
    for name in ("recipe.yaml", "recipe-2.yaml", "recipe-10.yaml", "recipe-x.yaml"):
        (tmp_path / name).touch()
    assert newest_recipe(tmp_path).name == "recipe-10.yaml"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: RUN_FOLDER"),
        (["--run.export=false"], "required: RUN_FOLDER"),
        (["nowhere"], "nowhere is no folder of a run: there is no such folder"),
        (["."], "it has no recipe.yaml"),
    ],
)
def test_without_a_folder_of_a_run_it_says_what_it_needs(
    arguments: list[str], words: str, capsys: Any
) -> None:
    assert main(["report", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_folder_may_lie_in_the_home(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["report", "~/no_run"]) == 2
    assert str(tmp_path / "no_run") in capsys.readouterr().err
