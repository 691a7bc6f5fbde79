"""`data.map` of a recipe: its module is found beside the recipe; mistakes are told before anything else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from v1lit.cli.main import main


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in a folder with a module, that is not the current directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "maps_beside.py").write_text("def same(example, *, n=1):\n    return example\n")
    path = tmp_path / "mine.yaml"
    path.write_text("base: tiny_qwen\ndata:\n  map: maps_beside.same\n")
    return path


def test_a_module_beside_the_recipe_is_found(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "--print_config"]) == 0
    assert "  map: maps_beside.same\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("--data.map=maps_besides.same", "there is no module 'maps_besides'"),
        ("--data.map=maps_beside.sane", "(command line); maps_beside has no 'sane'; did you mean 'same'?"),
        ("--data.map={class_path: maps_beside.same, init_args: {m: 1}}", "unexpected keyword argument 'm'"),
    ],
)
def test_a_mistake_in_it_is_told_at_once(
    recipe: Path, change: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe), change]) == 2
    assert told in capsys.readouterr().err
    assert not list(recipe.parent.glob("work/*")), "no run was begun"
