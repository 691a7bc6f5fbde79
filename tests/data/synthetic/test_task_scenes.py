"""Drawn tasks: regions are what is drawn, and every answer and look is the one that the picture asks for."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import encode
from v1lit.data.synthetic import TASKS, Item, Scene, make_task_example, marked, read_source, trail
from v1lit.data.synthetic.questions import Search, Turn
from v1lit.data.synthetic.scene import COLORS, INK, PixelBox, frame, ring
from v1lit.data.synthetic.tasks import make_task, ranges_of
from v1lit.grounding.trace import format_trace, parse_trace

SIZES = [(224, 224), (112, 112), (336, 224)]
HARDEST: dict[str, dict[str, Any]] = {
    "trail": {"steps": 8, "objects": 12},
    "pair": {"objects": 15},
    "total": {"steps": 4, "objects": 6},
    "recall": {"objects": 36, "distance": 64},
}


def made(
    task: str, count: int, size: tuple[int, int] = (224, 224), **difficulty: Any
) -> list[tuple[Scene, Turn]]:
    ranges = ranges_of(task, difficulty)
    return [make_task(random.Random(f"{task} {k}"), task, size, ranges)[:2] for k in range(count)]


def looked_at(turn: Turn) -> list[Item]:
    return [item for step in turn.steps if isinstance(step, Search) for item in step.items]


def bounds(mask: np.ndarray) -> tuple[int, ...]:
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return tuple(int(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


# --- pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_boxes_of_small_objects_are_the_bounds_of_their_pixels(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marked, "paper", lambda rng, size: Image.new("RGB", size, "white"))
    for scene, _ in made("recall", 20, size, objects=36):
        pixels = np.asarray(scene.image).astype(int)
        coloured = np.ptp(pixels, axis=2) > 10  # marks and paper are grey
        for item in scene.items:
            x1, y1, x2, y2 = item.box
            around = np.zeros_like(coloured)
            around[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = True
            assert bounds(coloured & around) == item.box
            own = np.abs(pixels[y1:y2, x1:x2] - COLORS[item.color]).sum(axis=2) < 40
            share = {"circle": 0.785, "square": 1.0, "triangle": 0.5, "diamond": 0.5}[item.shape]
            assert own.mean() == pytest.approx(share, abs=0.2)
            coloured &= ~around
        assert not coloured.any(), "something was drawn that is no item"


@pytest.mark.parametrize("size", SIZES)
def test_boxes_of_dice_are_dark_with_a_white_dot_for_each_that_they_show(size: tuple[int, int]) -> None:
    for scene, _ in made("pair", 20, size, objects=15):
        pixels = np.asarray(scene.image).astype(int)
        for item in scene.items:
            x1, y1, x2, y2 = item.box
            face = pixels[y1:y2, x1:x2]
            edges = np.concatenate([face[0], face[-1], face[:, 0], face[:, -1]])
            assert (np.abs(edges - INK).sum(axis=1) < 120).all()
            assert count_spots(face.min(axis=2) > 140) == item.value


def count_spots(bright: np.ndarray) -> int:
    """How many connected areas a mask has."""
    left, spots = set(zip(*np.nonzero(bright), strict=True)), 0
    while left:
        spots += 1
        edge = [left.pop()]
        while edge:
            y, x = edge.pop()
            near = {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} & left
            left -= near
            edge += near
    return spots


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", ["trail", "pair", "recall"])
def test_the_ring_and_the_frame_stand_around_what_is_called_so(task: str, size: tuple[int, int]) -> None:
    for scene, turn in made(task, 20, size):
        assert [item for item in scene.items if _stands_around(item, ring, scene)] == [looked_at(turn)[0]]
        framed = [item for item in scene.items if _stands_around(item, frame, scene)]
        assert len(framed) == (task != "trail")
        if task == "pair":
            assert framed == looked_at(turn)[1:]


def _stands_around(item: Item, mark: Callable[[Image.Image, PixelBox], None], scene: Scene) -> bool:
    """Whether a picture is dark wherever an empty one with this mark around an item is."""
    empty = Image.new("RGB", scene.image.size, "white")
    mark(empty, item.box)
    return bool(_dark(scene.image)[_dark(empty)].all())


def _dark(image: Image.Image) -> np.ndarray:
    return np.abs(np.asarray(image).astype(int) - INK).sum(axis=2) < 250


@pytest.mark.parametrize("size", SIZES)
def test_boxes_of_nodes_are_the_bounds_of_their_colour(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail, "paper", lambda rng, size, tint: Image.new("RGB", size, "white"))
    monkeypatch.setattr(trail, "draw_arrows", lambda lines, size, scale, dot: Image.new("L", size, 0))
    for scene, _ in made("trail", 15, size):
        pixels = np.asarray(scene.image).astype(int)
        for item in scene.items:
            x1, y1, x2, y2 = item.box
            inside = np.zeros(size[::-1], bool)
            inside[y1 - 2 : y2 + 2, x1 - 2 : x2 + 2] = True
            assert bounds((np.ptp(pixels, axis=2) > 10) & inside) == item.box
            own = np.abs(pixels[y1:y2, x1:x2] - COLORS[item.color]).sum(axis=2) < 40
            assert own.mean() == pytest.approx(0.785, abs=0.15)


@pytest.mark.parametrize("size", SIZES)
def test_arrows_are_drawn_between_their_nodes_in_the_colour_of_the_second(size: tuple[int, int]) -> None:
    for scene, _ in made("trail", 15, size):
        pixels = np.asarray(scene.image).astype(int)
        for start, end in scene.arrows:
            assert scene.items[start].color != scene.items[end].color
            own = np.abs(pixels - COLORS[scene.items[end].color]).sum(axis=2) < 120
            x, y = (round(c) for c in scene.items[start].centre)
            assert own[y, x], "no dot in the middle of the node that it leaves"
            (x1, y1), (x2, y2) = scene.items[start].centre, scene.items[end].centre
            x, y = round((x1 + x2) / 2), round((y1 + y2) / 2)
            assert own[y - 1 : y + 2, x - 1 : x + 2].any()


@pytest.mark.parametrize("size", SIZES)
def test_boxes_of_bars_are_their_frames_filled_up_to_the_value(size: tuple[int, int]) -> None:
    for scene, _ in made("total", 20, size):
        pixels = np.asarray(scene.image).astype(int)
        for item in scene.items:
            x1, y1, x2, y2 = item.box
            edges = [pixels[y, x1:x2] for y in (y1, y2 - 1)] + [pixels[y1:y2, x] for x in (x1, x2 - 1)]
            assert all((edge == INK).all() for edge in edges)
            filled = (pixels[y1:y2, x1 + 1] == COLORS[item.color]).all(axis=1).mean()
            assert filled * 5 == pytest.approx(item.value, abs=0.25)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", SIZES)
def test_even_at_the_hardest_items_lie_in_the_image_and_never_overlap(
    task: str, size: tuple[int, int]
) -> None:
    for scene, turn in made(task, 5, size, **HARDEST[task]):
        owners = np.zeros(size[::-1], int)
        for item in scene.items:
            x1, y1, x2, y2 = item.box
            assert 0 <= x1 < x2 <= size[0]
            assert 0 <= y1 < y2 <= size[1]
            owners[y1:y2, x1:x2] += 1
        assert owners.max() == 1
        assert len(scene.items) == HARDEST[task]["objects"]
        assert set(looked_at(turn)) <= set(scene.items)


@pytest.mark.parametrize("task", TASKS)
def test_the_size_of_a_region_says_nothing(task: str) -> None:
    """A larger region would be a longer run of pointers, from which an answer could be read."""
    for scene, _ in made(task, 10):
        assert len({(i.box[2] - i.box[0], i.box[3] - i.box[1]) for i in scene.items}) == 1


# --- answers -----------------------------------------------------------------------------------------------


def one(items: list[Item]) -> Item:
    assert len(items) == 1, "the question is ambiguous"
    return items[0]


def way_to(question: str, scene: Scene, start: Item) -> list[Item]:
    """The nodes that the question of a trail leads along."""
    onward = dict(scene.arrows)
    assert len(onward) == len(scene.arrows) == len(scene.items), "one arrow leaves every node"
    nodes = [scene.items.index(start)]
    for _ in range(int(re.findall(r"(\d+) arrow", question)[0])):
        nodes.append(onward[nodes[-1]])
    return [scene.items[k] for k in nodes]


def test_a_trail_follows_the_arrows_and_does_not_end_where_they_end() -> None:
    for scene, turn in made("trail", 150, size=(112, 112), steps=[1, 5]):
        visited = looked_at(turn)
        way = way_to(turn.question, scene, visited[0])
        assert visited == way[:-1]
        assert len(set(way)) == len(way)
        assert turn.answer == way[-1].color


def test_of_a_pair_the_answer_names_the_die_that_shows_more() -> None:
    for _, turn in made("pair", 150, size=(112, 112)):
        ringed, framed = looked_at(turn)
        assert turn.answer == ("ringed" if ringed.value > framed.value else "framed")


def test_a_total_adds_the_bars_that_are_named() -> None:
    for scene, turn in made("total", 150, size=(112, 112), steps=[1, 4]):
        named = [
            one([i for i in scene.items if i.name == f"{c} bar"])
            for c in re.findall(r"the (\w+) bar", turn.question)
        ]
        assert looked_at(turn) == named
        assert turn.answer == str(round(sum(item.value for item in named)))


@pytest.mark.parametrize("look_again", [True, False])
def test_a_recall_asks_for_what_the_list_leaves(look_again: bool) -> None:
    circles = 0
    for scene, turn in made("recall", 150, size=(112, 112), look_again=look_again):
        listed = re.findall(r"(?:red|green|blue|yellow) (circle|square|triangle|diamond)", turn.question)
        circles += listed[-1] == "circle"
        looks = looked_at(turn)
        assert looks == [scene.items[0]] * (1 + look_again)
        assert turn.answer == (looks[0].shape if listed[-1] == "circle" else looks[0].color)
    assert 0.35 < circles / 150 < 0.65, "the list had better be read"


# --- examples ----------------------------------------------------------------------------------------------


def test_the_smallest_number_of_looks_and_the_difficulty_stand_in_the_source() -> None:
    fewest = {"trail": lambda f: f["steps"], "pair": lambda f: 2, "total": lambda f: f["steps"]}
    for task in TASKS:
        seen = set()
        for k in range(40):
            example = make_task_example(random.Random(k), id="e", task=task, size=(112, 112))
            facts = read_source(example.source)
            looks = facts["looks"]
            assert facts["task"] == task
            assert set(facts) == {"task", "looks", *TASKS[task].options}
            assert looks == (fewest[task](facts) if task in fewest else 1)
            assert looks == len({region.box for region in example.regions.values()})
            seen.add(example.source)
        varying = {"trail": 3, "pair": 1, "total": 2, "recall": 9}
        assert len(seen) == varying[task]


@pytest.mark.parametrize(
    "source", ["", "photos", "synthetic/shapes/find", "synthetic/trail/steps=x", "v1g/trail/a=1"]
)
def test_another_source_says_nothing_about_tasks(source: str) -> None:
    assert read_source(source) == {}


@pytest.mark.parametrize("task", TASKS)
def test_traces_are_well_formed_and_their_regions_are_those_of_the_scene(task: str) -> None:
    for k in range(30):
        example = make_task_example(random.Random(k), id="e", task=task, size=(112, 112))
        _, turn, _ = make_task(random.Random(k), task, (112, 112), ranges_of(task, {}))
        text = example.messages[-1].content
        parsed = parse_trace(text)
        assert not parsed.problems
        assert format_trace(parsed.trace) == text
        assert re.fullmatch(rf"<think> .+ </think><answer>{example.answer}</answer>", text, re.DOTALL)
        assert not re.search(r"[{}]", text)
        called = [o.region for call in parsed.trace.calls for o in call.objects]
        assert called == list(example.regions)
        assert [tuple(r.box or ()) for r in example.regions.values()] == [i.box for i in looked_at(turn)]


def test_distance_moves_the_look_and_what_is_asked_for_apart() -> None:
    processor = load_processor(BackboneConfig(name="qwen2_5_vl", weights="tiny"))
    between = {}
    for distance in (0, 4, 8, 16):
        tokens = []
        for k in range(10):
            example = make_task_example(
                random.Random(k), id="e", task="recall", difficulty={"distance": distance}
            )
            listed = re.findall(r"The list:(.*)\nSo the", example.messages[-1].content)[0]
            assert listed.count(".") == distance + 1
            first, second = encode(example, processor, EncodingConfig(coordinates=False)).regions
            tokens.append(second.start - first.stop)
        between[distance] = sum(tokens) / len(tokens)
    assert between[4] - between[0] >= 4 * 4
    assert between[8] - between[4] == pytest.approx(between[4] - between[0], rel=0.25)
    assert between[16] > 2 * between[4]


def test_between_the_look_and_the_question_nothing_says_what_was_seen() -> None:
    """Else no second look would be needed: the answer stood in the words."""
    for k in range(100):
        example = make_task_example(random.Random(k), id="e", task="recall", size=(112, 112))
        before, _, after = example.messages[-1].content.partition("\nSo the")
        assert not re.search(r"<obj1> is", before)
        assert f"It is {example.answer}." in after
