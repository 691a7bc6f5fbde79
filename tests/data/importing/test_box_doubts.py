"""Boxes that were declared wrongly look like what they are; others raise no doubt."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from v1lit.data.importing.box_doubts import BoxTally
from v1lit.data.importing.box_format import FULL, BoxFormat

SHAPES = [
    (unit, order) for unit in ("pixels", "0-1", "0-100", "0-1000") for order in ("xyxy", "xywh", "cxcywh")
]


def counted(unit: str, order: str, declared: BoxFormat, boxes: int = 200, seed: int = 0) -> BoxTally:
    """Boxes all over images of many sizes, written as `unit` and `order`, taken as `declared`."""
    rng, tally = random.Random(seed), BoxTally()
    for _ in range(boxes):
        size = rng.randint(300, 1600), rng.randint(300, 1600)
        x1, x2 = sorted(rng.sample(range(size[0] + 1), 2))
        y1, y2 = sorted(rng.sample(range(size[1] + 1), 2))
        full = size if unit == "pixels" else (FULL[unit], FULL[unit])
        x1, x2, y1, y2 = (at / size[axis] * full[axis] for at, axis in ((x1, 0), (x2, 0), (y1, 1), (y2, 1)))
        written = {
            "xyxy": (x1, y1, x2, y2),
            "xywh": (x1, y1, x2 - x1, y2 - y1),
            "cxcywh": ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
        }[order]
        tally.add(written, size, declared)
    return tally


@pytest.mark.parametrize(("unit", "order"), SHAPES)
def test_what_was_declared_rightly_raises_no_doubt(unit: str, order: str) -> None:
    declared = BoxFormat(unit, order)
    assert counted(unit, order, declared).doubts(declared) == []


@pytest.mark.parametrize(("unit", "order"), SHAPES)
def test_what_was_declared_wrongly_is_named_rightly(unit: str, order: str) -> None:
    for declared in (BoxFormat(*shape) for shape in SHAPES if shape != (unit, order)):
        [doubt] = counted(unit, order, declared).doubts(declared)
        assert f"they look like {BoxFormat(unit, order)}" in doubt, declared


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES), st.sampled_from(SHAPES))
def test_counting_in_parts_is_counting_at_once(seed, written, declared):
    whole = counted(*written, BoxFormat(*declared), boxes=60, seed=seed)
    merged = BoxTally()
    merged.merge(whole.to_json())
    merged.merge(BoxTally().to_json())
    assert merged.doubts(BoxFormat(*declared)) == whole.doubts(BoxFormat(*declared))


def test_points_of_pixmo_that_are_taken_as_pixels_are_noticed() -> None:
    rng, tally, declared = random.Random(0), BoxTally(), BoxFormat("pixels", "point")
    for _ in range(100):
        tally.add((rng.uniform(0, 100), rng.uniform(0, 100)), (640, 480), declared)
    assert "they look like point, 0-100" in tally.doubts(declared)[0]


def test_a_few_small_boxes_in_the_corner_are_left_alone() -> None:
    tally, declared = BoxTally(), BoxFormat()
    for _ in range(5):
        tally.add((0.1, 0.2, 0.8, 0.9), (640, 480), declared)
    assert tally.doubts(declared) == []
