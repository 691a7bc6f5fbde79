"""The small commands: `list` is instant, `data` makes and shows shards, help and version are there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import v1lit
from v1lit.backbones.registry import list_backbones
from v1lit.cli.main import main
from v1lit.cli.recipe import shipped_recipes

pytestmark = pytest.mark.dependencies


def test_list_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from v1lit.cli.main import main; main(['list']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'lightning')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in (*list_backbones(), *shipped_recipes()):
        assert name in done.stdout


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == v1lit.__version__
    assert main(["--help"]) == 0
    assert "doctor" in capsys.readouterr().out
    assert main(["run", "--help"]) == 0
    assert "--print_config" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["import", "synth", "show"])
def test_data_commands_explain_themselves(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["data", command, "--help"])
    assert stop.value.code == 0
    assert "--out" in capsys.readouterr().out


def test_help_of_a_recipe_explains_every_key(capsys):
    assert main(["run", "tiny_qwen", "--help"]) == 0
    text = capsys.readouterr().out
    for key in ("--model.pointer.gate", "--data.encoding.max_tokens", "--trainer.max_steps", "--run.name"):
        assert key in text


def test_drawn_scenes_can_be_shown(tmp_path, capsys):
    shards, page = tmp_path / "shards", tmp_path / "page.html"
    options = ["--examples", "3", "--look", "shapes", "bars", "--seed", "5", "--no-progress"]
    assert main(["data", "synth", "--out", str(shards), *options]) == 0
    assert json.loads((shards / "index.json").read_text())["examples"] == 3
    assert main(["data", "show", str(shards), "--out", str(page), "--n", "2"]) == 0
    assert capsys.readouterr().out.split()[-1] == str(page)
    assert "<html" in page.read_text(encoding="utf-8")
