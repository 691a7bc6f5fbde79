"""Before a recipe is parsed: texts are what was typed, and paths are expanded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from v1lit.cli.errors import UserError
from v1lit.cli.recipe import compose
from v1lit.cli.recipe_cli import RecipeCLI
from v1lit.cli.recipe_values import absolute_paths, prepare_values

NUMBERS = ["4211337", "001", "12e4567", "1e3", "1.10", "1_000", "0x1f", "12:30", "2024-01-01", ".5", ".inf"]
WORDS = [
    "true",
    "yes",
    "~",
    "Null",
    "NaN",
    "a #1",
    " a",
    "@x",
    "a: b: c",
    "[1]",
    "{a}",
    "*a",
    "&a",
    "---",
    "é x",
]


def composed(*changes: str, recipe: str = "tiny_qwen") -> dict[str, Any]:
    made = compose(recipe, changes)
    prepare_values(made)
    return made.config


@pytest.mark.parametrize("name", NUMBERS + WORDS)
def test_a_text_is_what_was_typed(name: str) -> None:
    assert composed(f"--run.name={name}")["run"]["name"] == name


def test_null_and_quotes_mean_what_they_do_in_yaml() -> None:
    assert composed("--run.name=null")["run"]["name"] is None
    assert composed("--run.name='null'")["run"]["name"] == "null"
    assert composed('--run.name="a b"')["run"]["name"] == "a b"
    assert composed("--data.source.folder=null")["data"]["source"]["folder"] == "null"  # never null


def test_numbers_stay_numbers_where_numbers_are_meant() -> None:
    config = composed("--trainer.max_steps=1_000", "--trainer.devices=2", "--trainer.precision=16")["trainer"]
    assert (config["max_steps"], config["devices"], config["precision"]) == (1000, 2, 16)
    assert composed("--data.source.options={}", "--data.source.options.n=01")["data"]["source"][
        "options"
    ] == {"n": 1}


def test_a_text_of_several_types_is_a_text_where_nothing_else_fits() -> None:
    assert composed("--trainer.max_time=12:00:00:00")["trainer"]["max_time"] == "12:00:00:00"
    logger = "--trainer.logger.class_path=lightning.pytorch.loggers.CSVLogger"
    config = composed(logger, "--trainer.logger.init_args.save_dir=x", "--trainer.logger.init_args.name=001")
    assert config["trainer"]["logger"]["init_args"]["name"] == "001"


def test_a_change_of_the_whole_group_takes_back_what_was_typed_before(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("{name: x}")
    config = composed("--run.name=001", f"--run={tmp_path / 'run.yaml'}")
    assert config["run"] == {"name": "x"}


@pytest.mark.parametrize("change", ["--seed_everything=@", "--trainer={a", "--data.source.options.x=[1"])
def test_what_is_neither_text_nor_yaml_is_refused(change: str) -> None:
    with pytest.raises(UserError, match="not valid YAML"):
        composed(change)


@pytest.mark.parametrize("name", ["12e4567", '~: "é'])
def test_a_name_comes_through_the_parser_and_the_recorded_recipe(name: str, tmp_path: Path) -> None:
    changes = [f"--run.name={name}", "--data.seed=${seed_everything}"]
    cli = RecipeCLI(compose("tiny_qwen", changes), parse_only=True)
    assert cli.config.run.name == name
    recorded = tmp_path / "recipe.yaml"
    recorded.write_text(cli.recorded())
    again = RecipeCLI(compose(str(recorded)), parse_only=True)
    assert again.config.run.name == name
    assert again.recorded() == again.resolved() == cli.recorded()


@pytest.mark.parametrize("name", ["4211337", "1e3", "true"])
def test_in_a_file_quotes_are_the_remedy_that_is_told(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"base: tiny_qwen\nrun: {{name: {name}}}\n")
    with pytest.raises(UserError, match=r"r\.yaml\); allowed: a text or null; in quotes it is a text"):
        RecipeCLI(compose(str(recipe)), parse_only=True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.chdir(tmp_path)
    return str(tmp_path)


def test_paths_of_a_recipe_are_expanded_wherever_they_stand(home: str) -> None:
    callback = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {dirpath: ~/best}}"
    config = composed(
        "--run.folder=~/runs",
        "--run.resume=$SCRATCH/last.ckpt",
        "--model.backbone.weights=${SCRATCH}/qwen",
        "--data.source.folder=~",
        "--data.source.val=~/val",
        "--data.source.path=$SCRATCH/rows",
        "--data.source.mixture=[{shards: ~/a}, {shards: s3://b/~c}]",
        "--data.stream.cache=~/cache",
        "--trainer.default_root_dir=~/root",
        f"--trainer.callbacks=[{callback}]",
    )
    assert config["run"] == {"folder": f"{home}/runs", "resume": "/scratch/last.ckpt"}
    assert config["model"]["backbone"]["weights"] == "/scratch/qwen"
    source = config["data"]["source"]
    assert (source["folder"], source["val"], source["path"]) == (home, f"{home}/val", "/scratch/rows")
    assert source["mixture"] == [{"shards": f"{home}/a"}, {"shards": "s3://b/~c"}]
    assert config["data"]["stream"]["cache"] == f"{home}/cache"
    assert config["trainer"]["default_root_dir"] == f"{home}/root"
    assert config["trainer"]["callbacks"][0]["init_args"]["dirpath"] == f"{home}/best"


def test_keys_in_braces_are_no_environment_variables(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("seed_everything", "of the environment")
    config = composed("--run.folder=~/${seed_everything}/${run.name}", "--run.name=$SCRATCH")
    assert config["run"] == {"folder": f"{home}/${{seed_everything}}/${{run.name}}", "name": "$SCRATCH"}


def test_a_variable_that_is_not_set_is_told_with_its_key() -> None:
    with pytest.raises(UserError, match=r"data\.source\.folder \(command line\): .* NO_SUCH is not set"):
        composed("--data.source.folder=$NO_SUCH/x")


def test_a_variable_in_braces_elsewhere_is_told_how_it_is_written(home: str) -> None:
    with pytest.raises(UserError, match=r"written \$\{oc\.env:SCRATCH\}"):
        RecipeCLI(compose("tiny_qwen", ["--run.name=x-${SCRATCH}"]), parse_only=True)


def test_the_recorded_recipe_has_paths_that_mean_the_same_anywhere(home: str) -> None:
    changes = ["--run.folder=runs", "--data.source.mixture=[{shards: 'a/x-{0..9}.tar'}, {shards: s3://b}]"]
    cli = RecipeCLI(compose("tiny_qwen", changes), parse_only=True)
    recorded = yaml.safe_load(cli.recorded())
    assert recorded["run"]["folder"] == f"{home}/runs"
    mixture = [one["shards"] for one in recorded["data"]["source"]["mixture"]]
    assert mixture == [f"{home}/a/x-{{0..9}}.tar", "s3://b"]
    assert recorded["model"]["backbone"]["weights"] == "tiny"
    assert yaml.safe_load(cli.resolved())["run"]["folder"] == "runs"


def test_names_of_the_hub_are_not_made_paths(home: str) -> None:
    config = {"model": {"backbone": {"weights": "owner/name"}}, "data": {"source": {"path": "owner/rows"}}}
    assert absolute_paths(config) == config
    Path("owner/name").mkdir(parents=True)
    assert absolute_paths(config)["model"]["backbone"]["weights"] == f"{home}/owner/name"
