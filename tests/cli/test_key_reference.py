"""`v1lit run RECIPE --help` says of every key what it is in the recipe, what it may be and what it means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from v1lit.cli.key_reference import REQUIRED, WIDTH, key_reference, keys
from v1lit.cli.recipe import compose
from v1lit.cli.recipe_cli import RecipeCLI
from v1lit.cli.schema import leaves

pytestmark = pytest.mark.dependencies
OWN = [key for key, _ in leaves() if not key.startswith("trainer.")]


@pytest.fixture(scope="module")
def page() -> str:
    changes = ["--model.pointer.gate=true", "--run.name=mine"]
    return key_reference(RecipeCLI(compose("tiny_qwen", changes), parse_only=True).config.as_dict())


@pytest.fixture(scope="module")
def paragraphs(page: str) -> dict[str, str]:
    found = re.split(r"^--([\w.]+)=", page, flags=re.M)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


def test_every_key_has_a_paragraph(paragraphs: dict[str, str]) -> None:
    assert list(paragraphs) == [key for key, _ in leaves()]


@pytest.mark.parametrize("key", OWN)
def test_every_key_of_v1lit_says_what_it_means(key: str, paragraphs: dict[str, str]) -> None:
    _, _, meaning = paragraphs[key].partition("\n")
    assert len(meaning.split()) >= 2


def test_what_it_means_is_that_of_the_docstring_and_no_more(paragraphs: dict[str, str]) -> None:
    """Also where a paragraph follows the last parameter."""
    assert paragraphs["model.pointer.gate"].startswith("True   (true or false)\n    Learn g = sigmoid(w . h)")
    assert paragraphs["run.name"].startswith("'mine'   (a text or null)\n    Name of the run's folder")
    assert paragraphs["data.map_validation"].strip().endswith("go through `map` as well.")
    assert "`data.batch_size`" not in paragraphs["data.batch_size"]


def test_what_follows_another_key_is_left_out(page: str) -> None:
    assert "--data.backbone" not in page
    assert "--model.backbone.name='qwen2_5_vl'" in page


def test_the_default_of_a_key_is_what_a_recipe_has_that_does_not_say_it(tmp_path: Path) -> None:
    (tmp_path / "bare.yaml").write_text("run: {name: bare}\n")
    recipe = compose(str(tmp_path / "bare.yaml"), [])
    said = key_reference(RecipeCLI(recipe, parse_only=True).config.as_dict())
    for key in keys():
        if key.default is not REQUIRED and key.name != "run.name" and not key.name.startswith("trainer."):
            assert f"--{key.name}={key.default!r}   (" in said


def test_long_meanings_are_broken_into_lines(page: str) -> None:
    assert all(len(line) <= WIDTH for line in page.splitlines() if line.startswith("    "))
