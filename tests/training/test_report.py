"""The report at the end of a run: scores of hand-made predictions, files, a model that opens again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import v1lit
from v1lit.data.example import Example
from v1lit.data.loading.dataset import ShardDataset
from v1lit.grounding.patch_map import PatchMap, region_tokens
from v1lit.grounding.trace import parse_trace
from v1lit.inference.prediction import Prediction
from v1lit.training.config import RunConfig
from v1lit.training.report import HeldOutAnswer, draw_pictures, groups_of, overlap, score
from v1lit.training.results import print_report, write_json
from v1lit.training.run import run_training, trainer_defaults

pytestmark = pytest.mark.dependencies

KEYS = {
    "val/pointer_first_in_region",
    "val/region_iou",
    "val/answer_accuracy",
    "val/loss",
    "chance/pointer_first_in_region",
    "chance/region_iou",
    "train/seconds",
    "train/steps",
}


def held(
    example: Example, pointers: tuple[tuple[int, ...], ...], answer: str | None, truth: set[int]
) -> HeldOutAnswer:
    text = "<think> I look. </think>"
    prediction = Prediction(
        text, answer, parse_trace(text).trace, pointers, (PatchMap.grid(example.images[0].size, 4, 4),)
    )
    name = next(iter(example.regions), None)
    return HeldOutAnswer(example, example.messages[:1], prediction, frozenset(truth), name, example.answer)


@pytest.fixture
def examples(scenes: Path) -> list[Example]:
    return list(ShardDataset(scenes / "train", shuffle=False, rank=0, world_size=1))


def test_accuracy_is_told_for_every_group_of_sources(examples: list[Example]) -> None:
    sources = ["synthetic/trail/steps=1/looks=2", "synthetic/trail/steps=2/looks=2", "synthetic/pair/looks=2"]
    answers = [
        held(replace(example, source=source), (), example.answer if right else "nonsense", set())
        for example, source, right in zip(examples, sources, (True, False, True), strict=False)
    ]
    name = "val/answer_accuracy/synthetic/"
    values = {key.removeprefix(name): value for key, value in score(answers).items() if name in key}
    assert values == {
        "pair": 1.0, "pair/looks=2": 1.0, "trail": 0.5, "trail/looks=2": 0.5, "trail/steps=1": 1.0,
        "trail/steps=2": 0.0,
    }  # fmt: skip
    assert score(answers)["val/examples/synthetic/trail"] == 2


@pytest.mark.parametrize("sources", [["one", "one"], ["one", ""], [f"image-{n}" for n in range(99)]])
def test_sources_that_tell_nothing_make_no_groups(examples: list[Example], sources: list[str]) -> None:
    answers = [held(replace(examples[0], source=source), (), "x", set()) for source in sources]
    assert groups_of(answers) == {}


def test_scores_by_hand(examples: list[Example]) -> None:
    one, two, three = examples[:3]
    values = score(
        [
            held(one, ((1, 2), (9,)), (one.answer or "").upper(), {1, 2, 5, 6}),
            held(two, (), "nonsense", {3}),
            held(three, ((0,),), None, set()),
        ]
    )
    assert values["val/examples"] == 3
    assert values["val/examples_with_region"] == 2
    assert values["val/pointer_first_in_region"] == 0.5
    assert values["val/region_iou"] == pytest.approx((2 / 4 + 0) / 2)
    assert values["chance/pointer_first_in_region"] == pytest.approx((4 / 16 + 1 / 16) / 2)
    assert values["chance/region_iou"] == 0.0
    assert values["val/answer_accuracy"] == pytest.approx(1 / 3)


def test_overlap() -> None:
    assert overlap(frozenset({1, 2}), frozenset({2, 3})) == pytest.approx(1 / 3)
    assert overlap(frozenset(), frozenset()) == 0.0


def test_a_perfect_model_scores_one(examples: list[Example]) -> None:
    answers = []
    for example in examples:
        maps = (PatchMap.grid(example.images[0].size, 4, 4),)
        truth = region_tokens(maps, next(iter(example.regions.values()))) if example.regions else []
        answers.append(held(example, (tuple(truth),) if truth else (), example.answer, set(truth)))
    values = score(answers)
    for name in ("pointer_first_in_region", "region_iou", "answer_accuracy"):
        assert values[f"val/{name}"] == 1.0
    assert 0 < values["chance/pointer_first_in_region"] < 0.6
    assert 0 < values["chance/region_iou"] < 0.6


def test_pictures_are_drawn(examples: list[Example], tmp_path: Path) -> None:
    paths = draw_pictures([held(examples[0], ((1, 2),), "left", {1, 2})], tmp_path / "pictures")
    assert [path.name for path in paths] == ["00.png"]
    with Image.open(paths[0]) as picture:
        assert picture.width > 400


def test_a_whole_run(
    make_data: Any, make_module: Any, make_trainer: Any, tmp_path: Path, capsys: Any
) -> None:
    options = trainer_defaults(tmp_path)
    options["callbacks"] = options["callbacks"][:-1]  # no progress bar
    data = make_data()
    trainer = make_trainer(
        max_steps=4,
        max_epochs=-1,
        val_check_interval=2,
        log_every_n_steps=2,
        enable_checkpointing=True,
        **options,
    )
    run = RunConfig(report_examples=6, report_batch_size=4, report_max_new_tokens=12, pictures=2)
    metrics = run_training(make_module(), data, trainer, run, tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: math.nan if value is None else value for name, value in written.items()} == pytest.approx(
        metrics, nan_ok=True
    )
    assert set(written) >= KEYS
    assert written["train/steps"] == 4
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    table = capsys.readouterr().out
    assert "first pointer in the true region" in table
    assert str(tmp_path) in table.replace("\n", "")
    predictor = v1lit.load(tmp_path / "model")
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in predictor.model.state_dict().items():
        assert torch.equal(value, best[f"model.{name}"]), name
    prediction = predictor(
        Image.new("RGB", (112, 112), "white"), "Where is the red circle?", max_new_tokens=5
    )
    assert prediction.text


def test_what_was_not_counted_is_null(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"b": math.nan, "a": 1.0})
    assert (tmp_path / "metrics.json").read_text() == '{\n  "a": 1.0,\n  "b": null\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_the_table_shows_chance_beside_the_model(tmp_path: Path) -> None:
    from rich.console import Console

    console = Console(record=True, width=100)
    metrics = {
        "val/pointer_first_in_region": 0.925,
        "chance/pointer_first_in_region": 0.125,
        "val/examples": 8.0,
    }
    print_report({**metrics, "train/steps": 3.0, "train/seconds": 1.0}, tmp_path, console)
    text = console.export_text()
    assert "92.5%" in text
    assert "12.5%" in text
