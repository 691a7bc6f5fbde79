"""Regions: what is accepted, which pixels they hold, how they compare, and that JSON keeps them."""

from __future__ import annotations

import json
import math
import pickle
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v1lit.grounding import Region, format_box

SIZE = (12, 9)
coordinates = st.integers(-3, 15) | st.floats(-3, 15, allow_nan=False).map(lambda v: round(v, 3))


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, float, float, float]:
    x = sorted(draw(st.lists(coordinates, min_size=2, max_size=2, unique=True)))
    y = sorted(draw(st.lists(coordinates, min_size=2, max_size=2, unique=True)))
    return x[0], y[0], x[1], y[1]


@st.composite
def polygons(draw: st.DrawFn) -> list[tuple[float, float]]:
    points = draw(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=7))
    x, y = zip(*points, strict=True)
    return points if min(x) < max(x) and min(y) < max(y) else [(0, 0), (5, 0), (0, 5)]


masks = st.lists(st.booleans(), min_size=SIZE[0] * SIZE[1], max_size=SIZE[0] * SIZE[1]).map(
    lambda bits: np.array([True, *bits[1:]]).reshape(SIZE[1], SIZE[0])
)
regions = st.one_of(
    st.builds(Region.from_box, boxes(), st.integers(0, 3)),
    st.builds(Region.from_boxes, st.lists(boxes(), min_size=1, max_size=4), st.integers(0, 3)),
    st.builds(Region.from_polygon, polygons(), st.integers(0, 3)),
    st.builds(Region.from_mask, masks, st.integers(0, 3)),
)


@given(regions)
def test_json_keeps_every_region(region: Region) -> None:
    text = json.dumps(region.to_json(), allow_nan=False)
    again = Region.from_json(json.loads(text))
    assert again == region
    assert hash(again) == hash(region)
    assert again.box == region.box


def test_a_list_of_four_numbers_is_a_box_of_the_image_that_the_reader_names() -> None:
    assert Region.from_json([1, 2, 3, 4], image=2) == Region.from_box((1, 2, 3, 4), image=2)
    assert Region.from_json({"box": [1, 2, 3, 4], "image": 1}, image=2).image == 1
    assert Region.from_box((1, 2, 3, 4.5)).to_json() == [1, 2, 3, 4.5]


@pytest.mark.parametrize(
    "value",
    [
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [3, 2, 1, 4],
        [1, 4, 3, 4],
        [1, 2, math.nan, 4],
        [1, 2, math.inf, 4],
        [1, 2, 10**400, 4],
        ["1", "2", "3", "4"],
        [True, 0, 2, 4],
        [None, 0, 2, 4],
        [[1, 2, 3, 4]],
        "1234",
        None,
        7,
        {},
        {"box": [1, 2, 3, 4], "mask": {}},
        {"circle": [1, 2, 3]},
        {"box": "1234"},
        {"box": {"x1": 1}},
        {"box": [1, 2, 3, 4], "image": -1},
        {"box": [1, 2, 3, 4], "image": True},
        {"box": [1, 2, 3, 4], "image": 0.5},
        {"boxes": []},
        {"boxes": [1, 2, 3, 4]},
        {"polygon": [[0, 0], [1, 1]]},
        {"polygon": [[0, 0], [1, 1, 1], [2, 0]]},
        {"polygon": [[0, 0], [1, 0], [2, 0]]},
        {"polygon": ["ab", "cd", "ef"]},
        {"polygon": [["a", "b"], ["c", "d"], ["e", "f"]]},
        {"mask": [1, 2]},
        {"mask": {"size": [2, 2], "runs": [0, 3]}},
        {"mask": {"size": [2, 2], "runs": [4]}},
        {"mask": {"size": [2, 2], "runs": [-1, 5]}},
        {"mask": {"size": [2, 2], "runs": "0,4"}},
        {"mask": {"size": [2], "runs": [0, 2]}},
        {"mask": {"size": [60000, 60000], "runs": [0, 3600000000]}},
    ],
)
def test_what_is_no_region_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"box|region|coordinate|polygon|mask|image"):
        Region.from_json(value)


@pytest.mark.parametrize("number", [np.int64(2), np.float32(2), np.uint8(2), Fraction(2), 2.0])
def test_any_kind_of_real_number_is_a_coordinate(number: Any) -> None:
    region = Region.from_box([1, 1, number, 4])
    assert region == Region.from_box((1, 1, 2, 4))
    assert [type(value) for value in region.data] == [float] * 4


@pytest.mark.parametrize(
    "number",
    [
        True,
        np.bool_(True),
        Decimal(2),
        Fraction(10**10),
        np.float32(1e10),
        2j,
        "2",
        None,
        math.nan,
        -math.inf,
    ],
)
def test_nothing_else_is_a_coordinate(number: object) -> None:
    with pytest.raises(ValueError, match="a coordinate is a finite number of pixels"):
        Region.from_box([0, 0, number, 4])


def test_an_error_says_what_was_given_and_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"x1 < x2 and y1 < y2, got \[30, 0, 10, 5\]"):
        Region.from_box([30, 0, 10, 5])


@pytest.mark.parametrize(
    "mask", [np.zeros((3, 3), bool), np.ones((3, 3)), np.ones((1, 3, 3), bool), np.ones(3, bool)]
)
def test_a_mask_is_a_boolean_picture_with_something_in_it(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="mask"):
        Region.from_mask(mask)


def test_a_region_does_not_change_with_the_array_it_came_from() -> None:
    mask = np.eye(4, dtype=bool)
    region = Region.from_mask(mask)
    mask[:] = False
    assert region.mask((4, 4)).sum() == 4
    with pytest.raises(ValueError, match="read-only"):
        region.mask((4, 4))[0, 0] = False


@given(regions)
def test_a_region_travels_between_processes(region: Region) -> None:
    assert pickle.loads(pickle.dumps(region)) == region


def test_of_takes_what_people_have_at_hand() -> None:
    box = Region.from_box((1, 2, 3, 4))
    assert Region.of(box) is box
    assert (
        Region.of([1, 2, 3, 4]) == Region.of((1.0, 2.0, 3.0, 4.0)) == Region.of(np.array([1, 2, 3, 4])) == box
    )
    assert Region.of(np.ones((4, 4), bool)).kind == "mask"


@given(boxes())
def test_a_pixel_is_in_a_box_if_its_centre_is(box: tuple[float, float, float, float]) -> None:
    x, y = np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1])[:, None] + 0.5
    expected = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
    if expected.any():
        assert np.array_equal(Region.from_box(box).mask(SIZE), expected)


@given(polygons())
def test_a_pixel_is_in_a_polygon_if_its_centre_is(points: list[tuple[float, float]]) -> None:
    expected = np.zeros((SIZE[1], SIZE[0]), bool)
    for row in range(SIZE[1]):
        for column in range(SIZE[0]):
            expected[row, column] = _inside(points, column + 0.5, row + 0.5)
    if expected.any():
        assert np.array_equal(Region.from_polygon(points).mask(SIZE), expected)


def _inside(points: list[tuple[float, float]], x: float, y: float) -> bool:
    """Even-odd rule, one pixel at a time; a crossing exactly at the pixel's centre lies to its left."""
    crossings = 0
    for (xa, ya), (xb, yb) in zip(points, points[1:] + points[:1], strict=True):
        if (ya <= y) != (yb <= y):
            (xa, ya), (xb, yb) = sorted([(xa, ya), (xb, yb)], key=lambda p: p[1])
            crossings += xa + (y - ya) * ((xb - xa) / (yb - ya)) <= x
    return crossings % 2 == 1


def test_a_box_as_a_polygon_holds_the_same_pixels() -> None:
    polygon = Region.from_polygon([(2, 1), (7, 1), (7, 6), (2, 6)])
    assert np.array_equal(polygon.mask(SIZE), Region.from_box((2, 1, 7, 6)).mask(SIZE))
    assert polygon.box == (2, 1, 7, 6)


def test_a_region_thinner_than_a_pixel_still_has_pixels() -> None:
    assert np.argwhere(Region.from_box((3.1, 2.1, 3.2, 2.3)).mask(SIZE)).tolist() == [[2, 3]]
    assert Region.from_polygon([(1, 1), (8, 1.01), (1, 1.02)]).mask(SIZE).any()


def test_pixels_outside_the_image_are_cut_off() -> None:
    assert Region.from_box((-5, -5, 2, 1)).mask(SIZE).sum() == 2
    assert not Region.from_box((100, 100, 101, 101)).mask(SIZE).any()


def test_a_mask_belongs_to_one_image_size() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\), not \(12, 9\)"):
        Region.from_mask(np.ones((3, 4), bool)).mask(SIZE)


@pytest.mark.parametrize(
    ("region", "within"),
    [
        (Region.from_box((0, 0, 12, 9)), True),
        (Region.from_box((0, 0, 12.5, 9)), False),
        (Region.from_box((-1, 0, 12, 9)), False),
        (Region.from_polygon([(0, 0), (12, 0), (6, 9)]), True),
        (Region.from_polygon([(0, 0), (12, 0), (6, 10)]), False),
        (Region.from_mask(np.ones((9, 12), bool)), True),
        (Region.from_mask(np.ones((12, 9), bool)), False),
    ],
)
def test_within_is_about_every_edge(region: Region, within: bool) -> None:
    assert region.within(SIZE) is within


@given(regions, regions)
def test_iou_is_symmetric_and_between_0_and_1(a: Region, b: Region) -> None:
    a, b = a.at(0), b.at(0)
    assert 0 <= a.iou(b, SIZE) <= 1 + 1e-12
    assert a.iou(b, SIZE) == pytest.approx(b.iou(a, SIZE))
    if a.mask(SIZE).any():
        assert a.iou(a, SIZE) == pytest.approx(1)
    assert a.iou(a.at(1), SIZE) == 0


whole_boxes = st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(6, 12), st.integers(5, 9))


@given(st.lists(whole_boxes, min_size=1, max_size=4), st.lists(whole_boxes, min_size=1, max_size=4))
def test_exact_iou_of_boxes_equals_counting_pixels(a: list[tuple], b: list[tuple]) -> None:
    exact = Region.from_boxes(a).iou(Region.from_boxes(b), SIZE)
    masks = [Region.from_mask(Region.from_boxes(x).mask(SIZE)) for x in (a, b)]
    assert exact == pytest.approx(masks[0].iou(masks[1], SIZE))


def test_iou_of_boxes_is_exact_below_a_pixel() -> None:
    assert Region.from_box((0, 0, 0.2, 0.1)).iou(Region.from_box((0.1, 0, 0.3, 0.1)), SIZE) == pytest.approx(
        1 / 3
    )


def test_a_box_is_written_as_the_published_format_writes_it(shared: Path) -> None:
    for case in json.loads((shared / "golden/v1_reference/regions.json").read_text()):
        assert format_box(case["box"], case["image_size"]) == case["normalized_box"]


def test_a_region_is_moved_onto_the_edge_within_the_tolerance_alone() -> None:
    assert Region.from_box((-0.01, 0, 10.01, 5)).clamped((10, 5), 0.01) == Region.from_box((0, 0, 10, 5))
    boxes = Region.from_boxes([(0, 0, 10.005, 5), (1, 1, 2, 2)], image=1)
    assert boxes.clamped((10, 5), 0.01) == Region.from_boxes([(0, 0, 10, 5), (1, 1, 2, 2)], image=1)
    inside, outside = Region.from_box((1, 1, 9.123456789, 5)), Region.from_box((0, 0, 10.02, 5))
    mask = Region.from_mask([[True]])
    for unchanged in (inside, outside, mask, Region.from_box((10, 0, 10.005, 5))):
        assert unchanged.clamped((10, 5), 0.01) is unchanged
