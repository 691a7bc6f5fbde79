"""`v1lit doctor --packing RECIPE` compares packed with alone on the recipe's own model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from v1lit.cli.main import main

pytestmark = pytest.mark.slow

FEW = ("--data.source.options.examples=8", "--data.source.options.val_examples=2")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "recipe", ["tiny_qwen", "tiny_qwen3_vl", "tiny_qwen3_5", "tiny_llava", "tiny_internvl", "tiny_gemma3"]
)
def test_tiny_recipes_pass(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--packing", recipe, *FEW]) == 0
    shown = capsys.readouterr().out
    assert "attention: sdpa" in shown
    assert shown.count("shapes-s0-") == 6
    assert "packed equals alone" in shown
    assert not list(Path.cwd().glob("runs*"))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_the_check_is_made_in_the_precision_of_the_run(
    precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--packing", "tiny_qwen", f"--trainer.precision={precision}", *FEW]) == 0
    shown = capsys.readouterr().out
    assert f"precision: {precision}" in shown
    assert "rounding explains up to 3e-02" in shown


@pytest.mark.usefixtures("here")
def test_a_leak_ends_with_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpacked(*args: Any) -> dict[str, Any]:
        return {"attention_mask": None, "use_cache": False}

    monkeypatch.setattr("v1lit.pointer.model.packed_decoder_arguments", unpacked)
    assert main(["doctor", "--packing", "tiny_qwen", *FEW]) == 1
    assert "packed does NOT equal alone" in capsys.readouterr().out


def test_a_change_without_a_recipe_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--data.batch_size=3"]) == 2
    assert "name it with --packing RECIPE" in capsys.readouterr().err


def test_an_unknown_recipe_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--packing", "tiny_quen"]) == 2
    assert "tiny_qwen" in capsys.readouterr().err
