"""`--print_config` prints a recipe that stands alone: printing it again gives the same."""

from __future__ import annotations

import re

import pytest
import yaml

from v1lit.cli.main import main
from v1lit.cli.recipe import shipped_recipes

pytestmark = pytest.mark.dependencies


def printed(capsys, *arguments: str) -> str:
    assert main(["run", *arguments, "--print_config"]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_recipes())
def test_the_printed_recipe_prints_itself(name, tmp_path, monkeypatch, capsys):
    stages = [text for text in re.split(r"(?m)^--- # stage .*\n", printed(capsys, name)) if text]
    monkeypatch.chdir(tmp_path)
    for text in stages:
        (tmp_path / "alone.yaml").write_text(text)
        assert printed(capsys, "alone.yaml") == text
        assert "${" not in text
        assert ".yaml" not in text


def test_interpolations_follow_changes_on_the_command_line(capsys):
    config = yaml.safe_load(printed(capsys, "tiny_qwen", "--seed_everything=11"))
    assert config["data"]["seed"] == config["model"]["init_seed"] == 11


def test_interpolations_reach_defaults_that_no_file_names(capsys):
    config = yaml.safe_load(printed(capsys, "tiny_qwen", "--data.val_batch_size=${model.pointer.loss_chunk}"))
    assert config["data"]["val_batch_size"] == config["model"]["pointer"]["loss_chunk"]


def test_data_follows_the_backbone_and_does_not_repeat_it(capsys):
    config = yaml.safe_load(
        printed(capsys, "tiny_qwen", "--model.backbone.name=llava", "--model.backbone.tiny={}")
    )
    assert config["model"]["backbone"]["name"] == "llava"
    assert "backbone" not in config["data"]


def test_every_key_is_shown_with_its_value(capsys):
    config = yaml.safe_load(printed(capsys, "tiny_qwen"))
    assert config["trainer"]["devices"] == 1
    assert config["model"]["pointer"]["width"] is None
    assert config["run"]["report_examples"] > 0
