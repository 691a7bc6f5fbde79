"""Drawn scenes: exact regions, right and balanced answers, the same bytes for the same seed."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from v1lit.data.images import decode_image
from v1lit.data.shards import Shard, list_shards
from v1lit.data.synthetic import (
    LOOKS,
    QUESTION_KINDS,
    Item,
    Scene,
    generate,
    make_example,
    make_scene,
    shapes,
    synthesize,
)
from v1lit.data.synthetic.questions import NoQuestionError, Search, Turn
from v1lit.data.synthetic.scene import COLORS, INK
from v1lit.grounding.trace import format_trace, parse_trace

SIZES = [(168, 168), (112, 112), (336, 224)]


def scenes(look: str, count: int, size: tuple[int, int] = (168, 168)) -> list[Scene]:
    return [make_scene(random.Random(f"{look} {k}"), look, size) for k in range(count)]


def turns(look: str, kind: str, count: int) -> list[tuple[Scene, Turn]]:
    rng = random.Random(f"{look} {kind}")
    found: list[tuple[Scene, Turn]] = []
    while len(found) < count:
        scene = make_scene(rng, look)
        with suppress(NoQuestionError):
            found.append((scene, getattr(LOOKS[look], kind)(rng, scene)))
    return found


# --- pictures ----------------------------------------------------------------------------------------------


def bounds(mask: np.ndarray) -> tuple[int, ...]:
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return tuple(int(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


@pytest.mark.parametrize("size", SIZES)
def test_boxes_of_shapes_are_the_bounds_of_their_pixels(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "paper", lambda rng, size: Image.new("RGB", size, "white"))
    for scene in scenes("shapes", 30, size):
        drawn = (np.asarray(scene.image) != 255).any(axis=2)
        for item in scene.items:
            x1, y1, x2, y2 = item.box
            around = np.zeros_like(drawn)
            around[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = True
            assert bounds(drawn & around) == item.box
            drawn &= ~around
        assert not drawn.any(), "something was drawn that is no item"


@pytest.mark.parametrize("size", SIZES)
def test_boxes_of_bars_are_the_bounds_of_their_colour(size: tuple[int, int]) -> None:
    for scene in scenes("bars", 20, size):
        for item in scene.items:
            assert bounds((np.asarray(scene.image) == COLORS[item.color]).all(axis=2)) == item.box


@pytest.mark.parametrize("size", SIZES)
def test_boxes_of_nodes_are_the_bounds_of_their_outline(size: tuple[int, int]) -> None:
    for scene in scenes("diagrams", 20, size):
        pixels = np.asarray(scene.image).astype(int)
        for item in scene.items:
            x1, y1, x2, y2 = item.box
            assert bounds((pixels == COLORS[item.color]).all(axis=2)) == (x1 + 1, y1 + 1, x2 - 1, y2 - 1)
            edges = [pixels[y, x1:x2] for y in (y1, y2 - 1)] + [pixels[y1:y2, x] for x in (x1, x2 - 1)]
            assert all((edge == INK).all() for edge in edges)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("size", SIZES)
def test_items_lie_in_the_image_and_never_overlap(look: str, size: tuple[int, int]) -> None:
    for scene in scenes(look, 30, size):
        owners = np.zeros(size[::-1], int)
        for item in scene.items:
            x1, y1, x2, y2 = item.box
            assert 0 <= x1 < x2 <= size[0]
            assert 0 <= y1 < y2 <= size[1]
            owners[y1:y2, x1:x2] += 1
        assert owners.max() == 1
        assert scene.image.size == size


def test_shapes_vary_in_number_kind_size_and_place() -> None:
    drawn = scenes("shapes", 400)
    assert {len(scene.items) for scene in drawn} == {2, 3, 4, 5}
    items = [item for scene in drawn for item in scene.items]
    assert {(i.color, i.shape) for i in items} == {
        (c, s) for c in COLORS for s in ("circle", "square", "triangle")
    }
    sides = {item.box[2] - item.box[0] for item in items}
    assert (min(sides), max(sides)) == (34, 60)
    for axis in (0, 1):
        offsets = {item.box[axis] % 28 for item in items}
        assert len(offsets) == 28, "objects must not sit on a grid"


def test_colour_and_shape_of_an_item_are_those_of_its_pixels() -> None:
    fill = {"circle": 0.785, "square": 1.0, "triangle": 0.5}
    for scene in scenes("shapes", 40):
        for item in scene.items:
            inside = np.asarray(scene.image.crop(item.box)).astype(int)
            own = np.abs(inside - COLORS[item.color]).sum(axis=2) < 40
            assert own.mean() == pytest.approx(fill[item.shape], abs=0.08)


# --- an independent check of every answer ------------------------------------------------------------------


def one(items: list[Item]) -> Item:
    assert len(items) == 1, "the question is ambiguous"
    return items[0]


def resolve(query: str, scene: Scene) -> list[Item]:
    """The items that a query means, worked out from the scene alone; groups from left to right."""
    items, label = list(scene.items), {i.label: n for n, i in enumerate(scene.items)}
    in_order = sorted(items, key=lambda i: (i.box[0] + i.box[2], i.box[1] + i.box[3]))
    if m := re.fullmatch(r"the (\w+) (circle|square|triangle|bar|node)", query):
        if m[1] in ("tallest", "shortest"):
            tops = [
                i for i in items if i.box[1] == (min if m[1] == "tallest" else max)(j.box[1] for j in items)
            ]
            return [one(tops)]
        return [one([i for i in items if (i.color, i.shape) == m.groups()])]
    if m := re.fullmatch(r"(\w+) objects", query):
        return [i for i in in_order if i.color == m[1]]
    if m := re.fullmatch(r"(circle|square|triangle)s", query):
        return [i for i in in_order if i.shape == m[1]]
    if m := re.fullmatch(r"(?:the bar of|node) (\w+)", query):
        return [one([i for i in items if i.label == m[1]])]
    if m := re.fullmatch(r"bars (higher|lower) than (\d+)", query):
        return [i for i in in_order if (height(i, scene) > float(m[2])) == (m[1] == "higher")]
    if m := re.fullmatch(r"nodes that (\w) points to", query):
        return [i for i in in_order if (label[m[1]], label[i.label]) in scene.arrows]
    if m := re.fullmatch(r"nodes that point to (\w)", query):
        return [i for i in in_order if (label[i.label], label[m[1]]) in scene.arrows]
    raise AssertionError(f"what is {query!r}?")


def height(bar: Item, scene: Scene) -> float:
    """Read off the picture: the gridlines span from 0.06 to 0.88 of the image's height."""
    top, bottom = 0.06 * scene.image.height, 0.88 * scene.image.height
    assert bar.box[3] == pytest.approx(bottom, abs=1)
    return (bottom - bar.box[1]) / (bottom - top) * max(scene.gridlines)


def where(item: Item, scene: Scene) -> str:
    x, y = (item.box[0] + item.box[2]) / 2, (item.box[1] + item.box[3]) / 2
    width, height = scene.image.size
    assert abs(x - width / 2) > 0.05 * width, "too close to the middle to say left or right"
    assert abs(y - height / 2) > 0.05 * height, "too close to the middle to say top or bottom"
    return ("top" if y < height / 2 else "bottom") + (" left" if x < width / 2 else " right")


THING = r"(the \w+ (?:circle|square|triangle|bar|node)|the bar of \w+|node \w\b)"
GROUP = r"(\w+ objects|circles|squares|triangles)"


def expected(question: str, scene: Scene) -> str:
    """The answer to a question, worked out from its words and the scene alone."""
    for pattern, answer in RULES:
        if m := re.search(pattern, question):
            return answer(m, scene)
    raise AssertionError(f"no rule for {question!r}")


def yes(truth: bool) -> str:
    return "yes" if truth else "no"


def is_side(m: re.Match[str], scene: Scene) -> str:
    (a,), (b,) = resolve(m[1], scene), resolve(m[3], scene)
    axis = 0 if m[2] in ("left of", "right of") else 1
    a_at, b_at = (i.box[axis] + i.box[axis + 2] for i in (a, b))
    assert abs(a_at - b_at) / 2 > 0.1 * scene.image.size[axis] or scene.look == "bars"
    return yes((a_at < b_at) == (m[2] in ("left of", "above")))


def sized(m: re.Match[str], scene: Scene) -> str:
    word, names = (m[1], m.groups()[1:]) if m[1] in ("larger", "smaller") else (m[3], m.groups()[:2])
    fill = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5}
    items = [one(resolve(name, scene)) for name in names]
    areas = [fill[i.shape] * (i.box[2] - i.box[0]) ** 2 for i in items]
    assert max(areas) > 1.15 * min(areas), "too close to call"
    return names[areas.index(max(areas) if word == "larger" else min(areas))]


def taller(word: str, a: str, b: str, scene: Scene) -> bool:
    high, low = (height(one(resolve(f"the bar of {x}", scene)), scene) for x in (a, b))
    assert abs(high - low) > 0.02 * max(scene.gridlines), "too close to call"
    return (high > low) == (word == "taller")


def arrows_from(name: str, scene: Scene) -> int:
    return len(resolve(f"nodes that {name} points to", scene))


def count(query: str, scene: Scene) -> str:
    return str(len(resolve(query, scene)))


def names_of(items: list[Item]) -> str:
    return ", ".join(i.label for i in items) or "none"


Rule = tuple[str, Callable[["re.Match[str]", Scene], str]]
RULES: list[Rule] = [
    (rf"{THING} (?:is |lie |stand )?(left of|right of|above|below) {THING}\?", is_side),
    (rf"(larger|smaller),? (?:one: )?{THING} or {THING}\?", sized),
    (rf"(larger|smaller): {THING} or {THING}\?", sized),
    (rf"Is {THING} or {THING} the (larger|smaller)", sized),
    (rf"more {GROUP} than {GROUP}", lambda m, s: yes(len(resolve(m[1], s)) > len(resolve(m[2], s)))),
    (rf"the {GROUP} outnumber the {GROUP}", lambda m, s: yes(len(resolve(m[1], s)) > len(resolve(m[2], s)))),
    (
        r"bar is (taller|shorter), (\w+) or (\w+)\?",
        lambda m, s: m[2] if taller(m[1], m[2], m[3], s) else m[3],
    ),
    (
        r"Is (\w+) or (\w+) the (taller|shorter) bar",
        lambda m, s: m[1] if taller(m[3], m[1], m[2], s) else m[2],
    ),
    (r"(\w+) (taller|shorter) than (?:the bar of )?(\w+)\?", lambda m, s: yes(taller(m[2], m[1], m[3], s))),
    (r"(?:leaving it, |leave )(\w) or (\w)\?", lambda m, s: max(m[1], m[2], key=lambda n: arrows_from(n, s))),
    (
        r"\b([A-H]) (?:point to more nodes )?than ([A-H])\?",
        lambda m, s: yes(arrows_from(m[1], s) > arrows_from(m[2], s)),
    ),
    (r"How many arrows leave node (\w)", lambda m, s: count(f"nodes that {m[1]} points to", s)),
    (r"How many nodes does node (\w) point to", lambda m, s: count(f"nodes that {m[1]} points to", s)),
    (r"How many .* (?:end at|point to) node (\w)", lambda m, s: count(f"nodes that point to {m[1]}", s)),
    (r"[Ww]hich nodes does (\w) point to", lambda m, s: names_of(resolve(f"nodes that {m[1]} points to", s))),
    (r"the nodes that (\w) points to", lambda m, s: names_of(resolve(f"nodes that {m[1]} points to", s))),
    (
        r"Does (\w) point to (\w)\?",
        lambda m, s: yes(m[2] in names_of(resolve(f"nodes that {m[1]} points to", s))),
    ),
    (
        r"arrow from (\w) to (\w)\?",
        lambda m, s: yes(m[2] in names_of(resolve(f"nodes that {m[1]} points to", s))),
    ),
    (r"bars.* (higher|lower) than (\d+)", lambda m, s: count(f"bars {m[1]} than {m[2]}", s)),
    (rf"(?:How many|Count the|number of) {GROUP}", lambda m, s: count(m[1], s)),
    (rf"colour (?:is|does) {THING}", lambda m, s: one(resolve(m[1], s)).color),
    (r"the (tallest|shortest)", lambda m, s: one(resolve(f"the {m[1]} bar", s)).label),
    (rf"(?:label|letter) (?:of|stands (?:in|under)) {THING}", lambda m, s: one(resolve(m[1], s)).label),
    (rf"(?:Where is|corner is|Find|corner) {THING}", lambda m, s: where(one(resolve(m[1], s)), s)),
]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_every_answer_and_every_search_is_right(look: str, kind: str) -> None:
    for scene, turn in turns(look, kind, 120):
        assert turn.answer == expected(turn.question, scene), turn.question
        searches = [step for step in turn.steps if isinstance(step, Search)]
        for search in searches:
            assert list(search.items) == resolve(search.query, scene), search.query
        two_steps = kind in ("compare", "relate") or (look, kind) == ("diagrams", "count")
        assert len(searches) == (2 if two_steps else 1)


@pytest.mark.slow
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", ["compare", "relate"])
def test_yes_and_no_are_equally_frequent(look: str, kind: str) -> None:
    answers = Counter(turn.answer for _, turn in turns(look, kind, 500))
    assert answers["yes"] + answers["no"] >= 180
    assert answers["yes"] / (answers["yes"] + answers["no"]) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("look", LOOKS)
def test_of_two_things_that_are_compared_either_may_win(look: str) -> None:
    first: Counter[bool] = Counter()
    for _, turn in turns(look, "compare", 400):
        if " or " in turn.question and turn.answer not in ("yes", "no"):
            first[turn.question.index(turn.answer) < turn.question.index(" or ")] += 1
    assert first[True] / first.total() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("look", LOOKS)
def test_counts_vary_and_include_zero(look: str) -> None:
    answers = Counter(turn.answer for _, turn in turns(look, "count", 200))
    assert {"0", "1", "2", "3"} <= set(answers)
    assert max(answers.values()) < 0.6 * answers.total()
    assert 0.05 < answers["0"] / answers.total() < 0.45


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_wording_varies(look: str, kind: str) -> None:
    names = re.compile(
        r"\b(red|green|blue|yellow|purple|orange|[A-Z]\b|Mon|Tue|Wed|Thu|Fri|Jan|Feb|Mar|Apr|May|\d+)"
    )
    asked = turns(look, kind, 100)
    assert len({names.sub("_", turn.question) for _, turn in asked}) >= 3
    assert len({names.sub("_", str(turn.steps[0])) for _, turn in asked}) >= 2


# --- examples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", LOOKS)
def test_an_example_has_one_image_and_unique_regions_over_all_its_turns(look: str) -> None:
    for k in range(20):
        example = make_example(random.Random(k), id=f"e{k}", look=look, questions=3)
        assert decode_image(example.images[0]).size == (168, 168)
        assert [m.role for m in example.messages] == ["user", "assistant"] * 3
        assert example.messages[0].content.startswith("<image>\n")
        assert len({m.content for m in example.messages[::2]}) == 3
        used = [
            o for m in example.messages[1::2] for c in parse_trace(m.content).trace.calls for o in c.objects
        ]
        assert (
            [o.region for o in used]
            == [f"<|region_{n}|>" for n in range(1, len(used) + 1)]
            == list(example.regions)
        )
        assert [o.name for o in used] == [f"<obj{n}>" for n in range(1, len(used) + 1)]


@pytest.mark.parametrize("look", LOOKS)
def test_traces_are_well_formed_and_end_with_the_answer(look: str) -> None:
    for k in range(40):
        example = make_example(random.Random(k), id=f"e{k}", look=look)
        text = example.messages[-1].content
        parsed = parse_trace(text)
        assert not parsed.problems
        assert format_trace(parsed.trace) == text
        assert re.fullmatch(rf"<think> .+ </think><answer>{example.answer}</answer>", text, re.DOTALL)
        assert "{" not in text


def test_kinds_are_equally_frequent_and_named_in_the_source() -> None:
    made = [make_example(random.Random(k), id=f"e{k}", size=(112, 112)) for k in range(200)]
    kinds = Counter(example.source for example in made)
    assert set(kinds) == {f"synthetic/shapes/{kind}" for kind in QUESTION_KINDS}
    assert min(kinds.values()) > 30


def test_regions_of_an_example_are_the_boxes_of_what_was_searched() -> None:
    for k in range(40):
        example = make_example(random.Random(k), id=f"e{k}", kinds=["find"])
        color, shape = re.findall(r"the (\w+) (circle|square|triangle)", example.messages[0].content)[0]
        (region,) = example.regions.values()
        x1, y1, x2, y2 = (int(v) for v in region.box)
        at = (x1 + x2) // 2, (y1 + 2 * y2) // 3
        assert decode_image(example.images[0]).getpixel(at) == COLORS[color], shape


# --- data sets ---------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_same_seed_gives_the_same_bytes_however_many_processes_draw(tmp_path: Path) -> None:
    made = [
        files(
            synthesize(
                tmp_path / str(k), examples=30, seed=seed, shard_examples=12, workers=workers, progress=False
            )
        )
        for k, (seed, workers) in enumerate([(5, 1), (5, 2), (6, 1)])
    ]
    assert made[0] == made[1]
    shards = [f"shard-00000{k}.{kind}" for k in range(3) for kind in ("index.safetensors", "tar")]
    assert list(made[0]) == ["index.json", *shards]
    assert made[0]["shard-000000.tar"] != made[2]["shard-000000.tar"]


def test_the_examples_of_two_seeds_are_all_different(tmp_path: Path) -> None:
    images = []
    for seed in (0, 1):
        folder = synthesize(
            tmp_path / str(seed), examples=40, seed=seed, image_size=(112, 112), progress=False
        )
        with Shard(folder / "shard-000000.tar") as shard:
            images += [shard.example(k).images[0].data for k in range(len(shard))]
    assert len(set(images)) == 80


def test_shards_hold_what_was_asked_for(tmp_path: Path) -> None:
    folder = synthesize(
        tmp_path / "deep" / "set",
        examples=9,
        look=list(LOOKS),
        kinds=["count", "relate"],
        image_size=[224, 160],
        questions_per_scene=2,
        progress=False,
    )
    (info,) = list_shards(folder)
    with Shard(folder / info.file) as shard:
        examples = [shard.example(k) for k in range(len(shard))]
    assert [e.source.split("/")[1] for e in examples] == [*LOOKS] * 3
    assert all(set(e.source.split("/")[2].split("+")) <= {"count", "relate"} for e in examples)
    assert all(e.images[0].size == (224, 160) and len(e.messages) == 4 for e in examples)


def test_a_data_set_is_written_once(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"examples": 3, "image_size": (112, 112), "progress": False}
    (tmp_path / "set").mkdir()  # an empty folder is fine
    folder = synthesize(tmp_path / "set", **wanted)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert synthesize(folder, **wanted) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(ValueError, match=r"seed is 0 there, not 1"):
        synthesize(folder, **wanted, seed=1)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_folder_with_anything_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        synthesize(tmp_path, examples=3, progress=False)
    assert files(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(ValueError, match="is a file"):
        synthesize(tmp_path / "notes.txt", examples=3, progress=False)


def test_a_damaged_data_set_is_not_taken_for_complete(tmp_path: Path) -> None:
    folder = synthesize(tmp_path / "set", examples=4, shard_examples=2, image_size=(112, 112), progress=False)
    shard = folder / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shard-000001\.tar"):
        synthesize(folder, examples=4, shard_examples=2, image_size=(112, 112), progress=False)
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-000001\.tar"):
        synthesize(folder, examples=4, shard_examples=2, image_size=(112, 112), progress=False)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = generate._numbered_example

    def stops(index: int, settings: dict[str, object]) -> object:
        if index == 5:
            raise KeyboardInterrupt
        return real(index, settings)

    monkeypatch.setattr(generate, "_numbered_example", stops)
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "set", examples=8, shard_examples=2, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_write_the_same_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: dict[str, Any] = {"examples": 3, "image_size": (112, 112), "progress": False}
    real = generate._write

    def slow(*args: Any) -> None:
        real(*args)
        monkeypatch.setattr(generate, "_write", real)
        synthesize(tmp_path / "set", **wanted)  # another process is done first

    monkeypatch.setattr(generate, "_write", slow)
    assert synthesize(tmp_path / "set", **wanted) == tmp_path / "set"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"examples": 0}, "examples is 0"),
        ({"examples": True}, "examples is True"),
        ({"seed": 1.5}, "seed is 1.5"),
        (
            {"look": ["shape"]},
            "no 'shape'; did you mean 'shapes'? allowed: shapes, bars, diagrams",
        ),
        ({"look": []}, "look is []; allowed: shapes"),
        (
            {"kinds": ["find", "guess"]},
            "no 'guess'; allowed: find, count, compare, relate",
        ),
        ({"image_size": (168,)}, "image_size"),
        ({"image_size": (20, 168)}, "112 to 2048"),
        ({"questions_per_scene": 0}, "questions_per_scene"),
        ({"shard_examples": -1}, "shard_examples"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        synthesize(tmp_path / "set", **{"examples": 3, "progress": False, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_too_many_questions_for_a_scene_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "TRIES", 5)
    with pytest.raises(ValueError, match="fewer questions per scene"):
        make_example(random.Random(0), id="e", kinds=["find"], questions=40)


def test_drawing_needs_no_torch() -> None:
    code = "import sys, v1lit.data.synthetic, v1lit.data.tools.show; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
