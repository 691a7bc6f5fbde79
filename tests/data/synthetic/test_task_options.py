"""Options of drawn tasks: the same bytes for the same ones, and wrong ones refused with what is allowed."""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path
from typing import Any

import pytest

from v1lit.cli.main import main
from v1lit.data.config import SourceConfig
from v1lit.data.shards import Shard, list_shards, read_index
from v1lit.data.sources.registry import check_source, prepare_source
from v1lit.data.synthetic import LOOKS, TASKS, make_example, read_source, synthesize
from v1lit.errors import OptionError


def examples_of(folder: Path) -> list[Any]:
    found = []
    for info in list_shards(folder):
        with Shard(folder / info.file) as shard:
            found += [shard.example(k) for k in range(len(shard))]
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_same_seed_gives_the_same_bytes_however_many_processes_draw(tmp_path: Path) -> None:
    made = [
        files(
            synthesize(
                tmp_path / str(k),
                examples=80,
                seed=seed,
                task=list(TASKS),
                image_size=(112, 112),
                workers=workers,
                progress=False,
            )
        )
        for k, (seed, workers) in enumerate([(5, 1), (5, 2), (6, 1)])
    ]
    assert made[0] == made[1]
    assert made[0]["shard-000000.tar"] != made[2]["shard-000000.tar"]


def test_shards_hold_what_was_asked_for(tmp_path: Path) -> None:
    folder = synthesize(
        tmp_path / "set",
        examples=40,
        task=["trail", "recall"],
        steps=2,
        objects=[5, 7],
        distance=[1, 3],
        look_again=False,
        progress=False,
    )
    examples = examples_of(folder)
    assert [e.id.split("-")[0] for e in examples] == ["trail", "recall"] * 20
    assert {e.images[0].size for e in examples} == {(224, 224)}
    facts = [read_source(e.source) for e in examples]
    assert {f["steps"] for f in facts[::2]} == {2}
    assert {f["objects"] for f in facts} == {5, 6, 7}
    assert {f["distance"] for f in facts[1::2]} == {1, 2, 3}
    assert {f["look_again"] for f in facts[1::2]} == {0}
    assert {len(e.regions) for e in examples[1::2]} == {1}


def test_a_data_set_of_a_task_is_written_once_and_another_refused(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"examples": 3, "image_size": (112, 112), "progress": False}
    folder = synthesize(tmp_path / "set", task="trail", **wanted)
    before = files(folder)
    assert synthesize(folder, task=["trail"], steps=[1, 3], **wanted) == folder
    with pytest.raises(ValueError, match=r"difficulty is .*'steps': \[1, 3\].* there, not .*\[2, 2\]"):
        synthesize(folder, task=["trail"], steps=2, **wanted)
    with pytest.raises(ValueError, match=r"look is None there, not \['shapes'\]"):
        synthesize(folder, **wanted)
    assert files(folder) == before


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"task": ["trial"]}, "task", "no 'trial'; did you mean 'trail'? allowed: trail, pair, total, recall"),
    ({"task": []}, "task", "allowed: trail"),
    ({"task": ["trail"], "look": ["bars"]}, "look", "task is trail, and tasks have their own questions"),
    ({"task": ["pair"], "kinds": ["find"]}, "kinds", "one of the two is null"),
    ({"task": ["pair"], "questions_per_scene": 2}, "questions_per_scene", "one of the two is null"),
    ({"steps": 2}, "steps", "only tasks have it; choose one with task: trail, pair, total, recall"),
    ({"look_again": True}, "look_again", "only tasks have it"),
    ({"task": ["pair"], "steps": 2}, "steps", "task is pair; only trail and total have it"),
    ({"task": ["trail"], "distance": 2}, "distance", "task is trail; only recall has it"),
    ({"task": ["trail"], "steps": 9}, "steps", "the task trail takes 1 to 8, or a list of its lowest"),
    ({"task": ["trail"], "steps": [3, 1]}, "steps", "the task trail takes 1 to 8"),
    (
        {"task": ["trail"], "steps": 6},
        "steps",
        "the task trail with 6 objects has at most 5 steps, and 6 are",
    ),
    (
        {"task": ["trail"], "objects": 3},
        "objects",
        "the task trail with 3 objects has at most 2 steps, and 3",
    ),
    ({"task": ["total"], "objects": 7}, "objects", "the task total takes 2 to 6"),
    ({"task": ["trail", "total"], "steps": 5}, "steps", "the task total takes 1 to 4"),
    ({"task": ["trail"], "steps": [1, 2, 3]}, "steps", "a whole number is needed, or the lowest and the"),
    ({"task": ["trail"], "steps": "3"}, "steps", "a whole number is needed"),
    ({"task": ["trail"], "steps": 1.5}, "steps", "a whole number is needed"),
    ({"task": ["trail"], "steps": True}, "steps", "a whole number is needed"),
    ({"task": ["recall"], "distance": -1}, "distance", "the task recall takes 0 to 64"),
    ({"task": ["recall"], "distance": []}, "distance", "a whole number is needed"),
    ({"task": ["recall"], "look_again": 1}, "look_again", "true or false is needed"),
    ({"task": ["pair"], "objects": 37}, "objects", "the task pair takes 2 to 15"),
    ({"task": ["pair"], "image_size": [64, 64]}, "image_size", "each 112 to 2048 pixels"),
]


@pytest.mark.parametrize(("wrong", "field", "why"), WRONG)
def test_wrong_options_are_named_with_what_is_allowed(
    tmp_path: Path, wrong: dict[str, Any], field: str, why: str
) -> None:
    with pytest.raises(OptionError, match=re.escape(why)) as caught:
        synthesize(tmp_path / "set", examples=3, progress=False, **wrong)
    assert caught.value.field == field
    with pytest.raises(OptionError, match=re.escape(why)) as caught:
        check_source(SourceConfig(name="synthetic", options=wrong))
    assert caught.value.key == f"data.source.options.{field}"
    assert list(tmp_path.iterdir()) == []


def test_the_source_draws_tasks_with_other_scenes_held_out(tmp_path: Path) -> None:
    options = {"task": ["total"], "steps": 1, "objects": [2, 3], "examples": 6, "val_examples": 4}
    options |= {"look": None, "kinds": None, "image_size": [112, 112]}  # null takes back what a part sets
    prepare_source(SourceConfig(name="synthetic", folder=str(tmp_path / "total"), options=options))
    train, val = (examples_of(tmp_path / "total" / name) for name in ("train", "val"))
    assert (len(train), len(val)) == (6, 4)
    assert {read_source(e.source)["steps"] for e in train + val} == {1}
    assert not {e.images[0].data for e in train} & {e.images[0].data for e in val}


def test_the_command_takes_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    words = (
        f"data synth --out {folder} --task trail recall --steps 1 2 --objects 5 --distance 3 --no-look-again"
    )
    assert main([*words.split(), "--examples", "4", "--image-size", "112", "112", "--no-progress"]) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    assert read_index(folder)["synthetic"]["difficulty"] == {
        "trail": {"steps": [1, 2], "objects": [5, 5]},
        "recall": {"distance": [3, 3], "objects": [5, 5], "look_again": [0, 0]},
    }
    assert main(["data", "synth", "--out", str(tmp_path / "b"), "--task", "pair", "--steps", "1"]) == 2
    assert "only trail and total have it" in capsys.readouterr().err


WORDS = {"shapes": "bdc7d23c2db071ca", "bars": "808e0dddb21cea6c", "diagrams": "e12f874097b9a02f"}
"""Look -> SHA-256 of the words and regions of 25 examples: what is drawn for it has not changed."""


@pytest.mark.parametrize("look", LOOKS)
def test_looks_are_drawn_as_before(look: str) -> None:
    told = hashlib.sha256()
    for k in range(25):
        example = make_example(random.Random(k), id=f"e{k}", look=look, questions=2)
        words = [message.content for message in example.messages]
        told.update(repr((words, [r.box for r in example.regions.values()], example.source)).encode())
    assert told.hexdigest()[:16] == WORDS[look]
