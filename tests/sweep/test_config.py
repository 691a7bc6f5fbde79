"""What a sweep file may say, which trials follow from it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from v1lit.cli.recipe import read_changes, read_typed
from v1lit.errors import OptionError
from v1lit.sweep.config import Sweep, read_sweep
from v1lit.sweep.grid import Trial, as_typed, make_trials

FAMILIES = {
    "qwen": {"model.backbone": "parts/qwen.yaml"},
    "llava": {"model.backbone": "parts/llava.yaml", "data.batch_size": 4},
}


def find(text: str, folder: Path) -> Path | None:
    return None if "missing" in text else folder / text


def read(**content: Any) -> Sweep:
    content = {"base": "tiny_qwen", "budget": {"steps": 10}, **content}
    return read_sweep(content, Path("sweeps/it.yaml"), find)


def trials(**content: Any) -> list[Trial]:
    return make_trials(read(**content))


def test_every_combination_of_labels_has_every_seed_and_all_have_the_first_one_first() -> None:
    axes = {"model.pointer.width": [8, None], "family": FAMILIES}
    found = trials(axes=axes, seeds=[3, 5])
    assert [trial.name for trial in found] == [
        "8-qwen-seed3", "8-llava-seed3", "null-qwen-seed3", "null-llava-seed3",
        "8-qwen-seed5", "8-llava-seed5", "null-qwen-seed5", "null-llava-seed5",
    ]  # fmt: skip
    assert found[1].settings == {"model.pointer.width": "8", "family": "llava"}
    assert found[1].seed == 3
    assert found[1].changes == {
        "seed_everything": 3,
        "model.backbone": "sweeps/parts/llava.yaml",
        "data.batch_size": 4,
        "trainer.max_steps": 10,
        "trainer.max_epochs": -1,
        "model.pointer.width": 8,
    }


def test_a_label_goes_only_with_the_labels_that_it_names() -> None:
    width = {
        "narrow": {"model.pointer.width": 8},
        "wide": {"model.pointer.width": 64, "only": {"family": "qwen"}},
    }
    names = [trial.name for trial in trials(axes={"width": width, "family": FAMILIES})]
    assert names == ["narrow-qwen-seed0", "narrow-llava-seed0", "wide-qwen-seed0"]


def test_an_axis_that_is_there_for_one_family_does_not_multiply_the_others() -> None:
    width = {"values": [8, 16], "only": {"family": ["qwen"]}}
    found = trials(axes={"family": FAMILIES, "model.pointer.width": width})
    assert [trial.name for trial in found] == ["qwen-8-seed0", "qwen-16-seed0", "llava-seed0"]
    assert found[-1].settings == {"family": "llava"}
    assert "model.pointer.width" not in found[-1].changes


def test_what_is_for_all_trials_stays_where_an_axis_changes_the_group_around_it() -> None:
    found = trials(changes={"model.backbone.attention": "sdpa"}, axes={"family": FAMILIES})
    assert list(found[0].changes)[-1] == "model.backbone.attention"
    words = found[0].words("tiny_qwen", Path("sweeps/it"))
    assert words.index("--model.backbone=sweeps/parts/qwen.yaml") < words.index(
        "--model.backbone.attention=sdpa"
    )
    assert words[-3:] == ["--run.folder=sweeps/it/trials", "--run.name=qwen-seed0", "--run.resume=auto"]


@pytest.mark.parametrize(
    "value",
    [1, 1e-05, 2.5, True, None, "sdpa", "1", "null", "a: b", "${seed_everything}", [1, "x"], {"a": ["b"]}],
)
def test_a_value_is_typed_such_that_the_command_line_reads_the_same(value: Any) -> None:
    ((key, text),) = read_changes([f"--some.key={as_typed(value)}"])
    assert (key, read_typed(text)) == ("some.key", value)


def test_a_part_inside_a_value_lies_relative_to_the_sweep_file() -> None:
    found = trials(changes={"trainer.logger": [{"part": "parts/a.yaml", "x": 1}]})
    assert found[0].changes["trainer.logger"] == [{"part": "sweeps/parts/a.yaml", "x": 1}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"axis": {}}, "axis is {}; no such key of a sweep; did you mean 'axes'?"),
        ({"base": None}, "base is None; give the recipe that the trials change"),
        ({"name": "a/b"}, "name is 'a/b'; a name has letters"),
        ({"budget": {"steps": 1, "tokens": 1}}, "give exactly one of steps, tokens, flops, seconds"),
        ({"budget": {"step": 1}}, "budget.step is 1; give exactly one of"),
        ({"budget": {"steps": 1.5}}, "budget.steps is 1.5; give a whole number"),
        ({"budget": {"tokens": 0}}, "budget.tokens is 0; give a number above 0"),
        ({"seeds": [0, 0]}, "seeds is [0, 0]; give different whole numbers from 0 on"),
        ({"metrics": "val/loss"}, "metrics is 'val/loss'; give names in metrics.json"),
        ({"axes": {"data.seed": 3}}, "axes.data.seed is 3; give a list of values of this key, or labels"),
        ({"axes": {"data.seed": []}}, "axes.data.seed is []; an axis has at least one value"),
        ({"axes": {"data.seed": [1, 1]}}, "'1' is there twice"),
        ({"axes": {"data.seed": [[1]]}}, "lists and mappings need a label"),
        ({"changes": {"trainer.max_steps": 3}}, "changes.trainer.max_steps is 3; the budget ends trials"),
        ({"changes": {"run.name": "x"}}, "changes.run.name is 'x'; the sweep sets it for each trial"),
        ({"changes": {"--x": 1}}, "changes.--x is 1; no key such as model.pointer.width"),
        ({"changes": {"model": "missing.yaml"}}, "changes.model is 'missing.yaml'; there is no such part"),
        ({"axes": {"a": FAMILIES, "b": FAMILIES}}, "axes.b is ['data.batch_size', 'model.backbone']; axis a"),
        ({"axes": {"a": {"x": {"only": {"b": "y"}}}}}, "axes.a.x.only.b is ['y']; no other axis"),
        ({"axes": {"f": FAMILIES}, "baseline": {"f": "qwem"}}, "no label of it; did you mean 'qwen'?"),
        ({"axes": {"k": {"a b": {"data.seed": 1}, "a/b": {"data.seed": 2}}}}, "have the folder a_b-seed0"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_key_and_what_is_allowed(content: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError) as error:
        trials(**content)
    assert says in str(error.value)
