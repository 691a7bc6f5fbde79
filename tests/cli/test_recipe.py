"""Recipes are composed from parts, and every mistake in the composition names its file and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from v1lit.cli.errors import UserError
from v1lit.cli.recipe import compose, find_recipe, read_changes, shipped, shipped_recipes

pytestmark = pytest.mark.dependencies


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_part_is_found_relative_to_the_file_that_names_it(write, tmp_path, monkeypatch):
    write("parts/model/m.yaml", "backbone: ../backbone/b.yaml\n")
    write("parts/backbone/b.yaml", "name: llava\n")
    recipe = write("recipes/r.yaml", "model: ../parts/model/m.yaml\n")
    monkeypatch.chdir("/")
    assert compose(str(recipe)).config == {"model": {"backbone": {"name": "llava"}}}


def test_single_keys_of_a_part_are_changed_in_place(write):
    write("b.yaml", "name: llava\nimage: {max_side: 100, size: 5}\n")
    recipe = write("r.yaml", "model: {backbone: {part: b.yaml, name: internvl, image: {max_side: 672}}}\n")
    composed = compose(str(recipe))
    assert composed.config["model"]["backbone"] == {"name": "internvl", "image": {"max_side": 672, "size": 5}}
    assert composed.origin("model.backbone.image.size").endswith("b.yaml")
    assert composed.origin("model.backbone.image.max_side").endswith("r.yaml")


def test_parts_may_stand_beside_changes_and_inside_them(write):
    write("data.yaml", "batch_size: 2\nsource: {name: v1g, path: x}\n")
    write("source.yaml", "name: synthetic\n")
    recipe = write("r.yaml", "data: {part: data.yaml, source: source.yaml}\n")
    assert compose(str(recipe)).config == {"data": {"batch_size": 2, "source": {"name": "synthetic"}}}


def test_a_variant_states_only_its_delta(write):
    write("b.yaml", "name: llava\n")
    write("base.yaml", "seed_everything: 3\nmodel: {backbone: {name: qwen2_vl, weights: w}, init_seed: 1}\n")
    recipe = write("r.yaml", "base: base.yaml\nmodel: {backbone: b.yaml}\n")
    assert compose(str(recipe)).config == {
        "seed_everything": 3,
        "model": {"backbone": {"name": "llava"}, "init_seed": 1},
    }


def test_a_base_may_be_a_shipped_recipe_by_name(write):
    recipe = write("r.yaml", "base: tiny_qwen\nseed_everything: 9\n")
    assert compose(str(recipe)).config["seed_everything"] == 9
    assert "backbone" in compose(str(recipe)).config["model"]


def test_parts_in_a_list_are_put_in_place(write):
    write("c.yaml", "class_path: A\n")
    recipe = write("r.yaml", "trainer: {callbacks: [c.yaml, {class_path: B}]}\n")
    assert compose(str(recipe)).config["trainer"]["callbacks"] == [{"class_path": "A"}, {"class_path": "B"}]


def test_changes_on_the_command_line_apply_in_order(write, tmp_path, monkeypatch):
    write("b.yaml", "name: llava\n")
    recipe = write("r.yaml", "model: {backbone: {name: qwen2_vl, weights: w}}\n")
    monkeypatch.chdir(tmp_path)
    changes = ["--model.backbone=b.yaml", "--model.backbone.weights=/x", "--model.optimizer.lr", "1e-3"]
    composed = compose(str(recipe), changes)
    assert composed.config["model"] == {
        "backbone": {"name": "llava", "weights": "/x"},
        "optimizer": {"lr": 1e-3},
    }
    assert composed.origin("model.backbone.weights") == "command line"


def test_an_empty_mapping_clears_what_stood_there(write):
    write("base.yaml", "data: {source: {options: {look: [a], n: 1}}, encoding: {x: 1}}\n")
    recipe = write("r.yaml", "base: base.yaml\ndata: {encoding: {}}\n")
    assert compose(str(recipe)).config["data"]["encoding"] == {}
    changes = ["--data.source.options={}", "--data.source.options.m=2"]
    assert compose(str(recipe), changes).config["data"]["source"]["options"] == {"m": 2}
    assert compose(str(recipe), changes).origin("data.source.options") == "command line"


def test_a_mistyped_shipped_part_is_told_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"did you mean 'configs/backbone/llava_tiny\.yaml'"):
        compose("tiny_qwen", ["--model.backbone=configs/backbone/llava_tny.yaml"])


def test_shipped_parts_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    composed = compose("tiny_qwen", ["--model.backbone=configs/backbone/llava_tiny.yaml"])
    backbone = composed.config["model"]["backbone"]
    assert backbone == yaml.safe_load((shipped("configs") / "backbone" / "llava_tiny.yaml").read_text())
    assert find_recipe("recipes/tiny_qwen.yaml") == shipped("recipes") / "tiny_qwen.yaml"


def test_interpolations_are_left_for_the_parser(write):
    recipe = write("r.yaml", "seed_everything: 1\ndata: {seed: '${seed_everything}'}\n")
    assert compose(str(recipe), ["--seed_everything=5"]).config["data"]["seed"] == "${seed_everything}"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"r.yaml": "model: nowhere.yaml"}, ["r.yaml", "model", "'nowhere.yaml'"]),
        (
            {"r.yaml": "model: {backbone: {part: modle.yaml}}", "model.yaml": "{}"},
            ["model.backbone", "did you mean 'model.yaml'"],
        ),
        (
            {"r.yaml": "model: a.yaml", "a.yaml": "backbone: b.yaml", "b.yaml": "x: a.yaml"},
            ["circle", "a.yaml -> ", "b.yaml -> "],
        ),
        ({"r.yaml": "base: r.yaml"}, ["circle", "r.yaml -> "]),
        ({"r.yaml": "base: tiny_qwem"}, ["base", "did you mean 'tiny_qwen'"]),
        ({"r.yaml": "model: {a: 1\nb: 2}: 3"}, ["r.yaml", "line", "not valid YAML"]),
        ({"r.yaml": "model: a.yaml", "a.yaml": "x: 1\nx: 2"}, ["a.yaml", "line 2", "duplicate key"]),
        ({"r.yaml": "- 1"}, ["r.yaml", "mapping"]),
        ({"r.yaml": "3"}, ["r.yaml"]),
        ({"r.yaml": "data: {part: a.yaml, x: 1}", "a.yaml": "[1, 2]"}, ["data", "a.yaml", "no mapping"]),
    ],
)
def test_a_mistake_in_the_files_names_file_and_key(write, files, expected):
    for name, text in files.items():
        write(name, text)
    recipe = write("r.yaml", files["r.yaml"])
    with pytest.raises(UserError) as caught:
        compose(str(recipe))
    for words in expected:
        assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_file_that_is_no_text_is_a_mistake(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UserError, match=r"r\.yaml"):
        compose(str(tmp_path / "r.yaml"))


def test_an_unknown_recipe_lists_what_there_is():
    with pytest.raises(UserError) as caught:
        find_recipe("tiny_qwn")
    assert "did you mean 'tiny_qwen'" in str(caught.value)
    assert all(name in str(caught.value) for name in shipped_recipes())


@pytest.mark.parametrize("arguments", [["x"], ["--"], ["--=3"], ["--a..b=3"], ["--a"], ["--a", "--b=3"]])
def test_arguments_that_are_no_changes_are_refused(arguments):
    with pytest.raises(UserError):
        read_changes(arguments)


NAMES = st.text("abcdefgh_", min_size=1, max_size=8)


@given(
    st.lists(
        st.tuples(st.lists(NAMES, min_size=1, max_size=3).map(".".join), st.text(max_size=20)), max_size=5
    ),
)
def test_changes_are_read_as_they_are_written(pairs):
    assert read_changes([f"--{key}={value}" for key, value in pairs]) == pairs
