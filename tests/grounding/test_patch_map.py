"""Regions to tokens and back: the published rule, its edges, tiles beside an overview, several images."""

from __future__ import annotations

import json
import math
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from v1lit.grounding import NOT_SPATIAL, OVERVIEW, TILE, PatchMap, Region, Views, region_tokens, token_regions

sides, counts = st.integers(1, 2000), st.integers(1, 40)


@pytest.fixture(scope="module")
def cases(shared: Path) -> list[dict[str, Any]]:
    return json.loads((shared / "golden/v1_reference/regions.json").read_text())


def golden_map(case: dict, size: str = "image_size") -> PatchMap:
    side = case["patch_size"] * case["merge_size"]
    cols, rows = (length // side for length in case["resized_size"])
    return PatchMap.grid(tuple(case[size]), rows, cols)


def ellipse(case: dict) -> np.ndarray:
    (width, height), (cx, cy, rx, ry) = case["image_size"], case["ellipse"]
    y, x = np.mgrid[:height, :width]
    return ((x - cx) / max(rx, 1)) ** 2 + ((y - cy) / max(ry, 1)) ** 2 <= 1


def different(cases: list[dict], got: list, key: str) -> list[int]:
    """Numbers of the cases that differ: short to print, unlike the cases."""
    return [number for number, (case, ids) in enumerate(zip(cases, got, strict=True)) if ids != case[key]]


def test_boxes_point_at_the_published_tokens(cases: list[dict[str, Any]]) -> None:
    got = [golden_map(case).tokens(case["box"]) for case in cases]
    assert len(cases) == 160
    assert different(cases, got, "pointer_ids") == []


def test_masks_point_at_the_published_tokens(cases: list[dict[str, Any]]) -> None:
    cases = [case for case in cases if "ellipse" in case]
    got = [golden_map(case).tokens(ellipse(case)) for case in cases]
    assert len(cases) == 40
    assert different(cases, got, "mask_pointer_ids") == []


def test_tokens_drawn_back_are_the_published_masks(cases: list[dict[str, Any]]) -> None:
    drawn = [golden_map(case, "resized_size").region(case["pointer_ids"]) for case in cases]
    assert different(cases, [[int(v) for v in region.box] for region in drawn], "mask_bounds") == []
    pixels = [int(r.mask(tuple(c["resized_size"])).sum()) for r, c in zip(drawn, cases, strict=True)]
    assert different(cases, pixels, "mask_pixels") == []


@st.composite
def grids_with_whole_boxes(draw: st.DrawFn) -> tuple[tuple[int, int], int, int, tuple[int, int, int, int]]:
    width, height = draw(sides), draw(sides)
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    box = (x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height)))
    return (width, height), draw(counts), draw(counts), box


@given(grids_with_whole_boxes())
def test_a_box_counts_as_if_scaled_floored_and_ceiled(drawn: tuple[Any, ...]) -> None:
    (width, height), rows, cols, box = drawn
    side = 28
    x1, x2 = (
        Fraction(x) * (cols * side) / width / side for x in box[0::2]
    )  # to the resized image, to its grid
    y1, y2 = (Fraction(y) * (rows * side) / height / side for y in box[1::2])
    expected = [
        row * cols + col
        for row in range(math.floor(y1), math.ceil(y2))
        for col in range(math.floor(x1), math.ceil(x2))
    ]
    assert PatchMap.grid((width, height), rows, cols).tokens(box) == expected


@given(sides, sides, counts, counts, st.data())
def test_a_box_on_the_edges_of_tokens_catches_no_neighbour(
    width: int, height: int, rows: int, cols: int, data: st.DataObject
) -> None:
    """Whichever way the edges were computed: three that round differently."""
    c1, r1 = data.draw(st.integers(0, cols - 1)), data.draw(st.integers(0, rows - 1))
    c2, r2 = data.draw(st.integers(c1 + 1, cols)), data.draw(st.integers(r1 + 1, rows))
    expected = [row * cols + col for row in range(r1, r2) for col in range(c1, c2)]
    patch_map = PatchMap.grid((width, height), rows, cols)
    ways = [
        lambda n, of, length: n * (length / of),
        lambda n, of, length: n / of * length,
        lambda n, of, length: length - (of - n) * (length / of),
    ]
    for way in ways:
        box = (way(c1, cols, width), way(r1, rows, height), way(c2, cols, width), way(r2, rows, height))
        assert patch_map.tokens(box) == expected


def test_a_box_that_reaches_into_a_neighbour_catches_it() -> None:
    patch_map = PatchMap.grid((30, 10), 1, 3)
    assert patch_map.tokens((10, 0, 20, 10)) == [1]
    assert patch_map.tokens((10 - 1e-6, 0, 20 + 1e-6, 10)) == [0, 1, 2]


@given(st.integers(1, 300), st.integers(1, 300), counts, counts, st.data())
@settings(max_examples=300)
def test_a_mask_counts_as_if_resampled_by_the_published_filter(
    width: int, height: int, rows: int, cols: int, data: st.DataObject
) -> None:
    mask = np.zeros((height, width), bool)
    for _ in range(data.draw(st.integers(1, 3))):
        mask[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
    if data.draw(st.booleans()):
        mask[: data.draw(st.integers(1, height)), : data.draw(st.integers(1, width))] = True
    assert PatchMap.grid((width, height), rows, cols).tokens(mask) == _resampled(mask, rows, cols)


@pytest.mark.parametrize(("width", "cols"), [(28, 4), (29, 9), (30, 54), (35, 33), (1375, 33)])
def test_a_pixel_on_the_rim_of_the_filter_counts_as_single_precision_decides(width: int, cols: int) -> None:
    """Sizes at which pixels lie exactly one token's width from a token's centre, give or take rounding."""
    patch_map = PatchMap.grid((width, 1), 1, cols)
    pixels = np.eye(width, dtype=bool)[:, None]
    assert [patch_map.tokens(p) for p in pixels] == [_resampled(p, 1, cols) for p in pixels]


def _resampled(mask: np.ndarray, rows: int, cols: int) -> list[int]:
    if rows == cols == 1:
        return [0]
    if cols == 1:  # torch mixes up the axes of a single column; a single row is fine
        return _resampled(mask.T, cols, rows)
    values = torch.nn.functional.interpolate(
        torch.from_numpy(mask.copy()).float()[None, None], size=(rows, cols), mode="bilinear", antialias=True
    )
    return torch.nonzero(values.flatten() > 0).flatten().tolist()


def test_a_polygon_points_where_its_mask_does() -> None:
    patch_map = PatchMap.grid((200, 120), 5, 8)
    polygon = Region.from_polygon([(10, 10), (90, 20), (40, 100)])
    assert patch_map.tokens(polygon) == patch_map.tokens(polygon.mask((200, 120))) != []


def test_an_empty_mask_points_nowhere_and_one_of_another_size_is_refused() -> None:
    patch_map = PatchMap.grid((20, 10), 2, 4)
    assert patch_map.tokens(np.zeros((10, 20), bool)) == []
    with pytest.raises(ValueError, match=r"\(10, 20\), not \(20, 10\)"):
        patch_map.tokens(np.ones((20, 10), bool))


@given(sides, sides, counts, counts, st.data())
def test_tokens_to_region_and_back_are_the_same_tokens(
    width: int, height: int, rows: int, cols: int, data: st.DataObject
) -> None:
    tokens = sorted(data.draw(st.sets(st.integers(0, rows * cols - 1), min_size=1, max_size=30)))
    patch_map = PatchMap.grid((width, height), rows, cols)
    assert patch_map.tokens(patch_map.region(tokens)) == tokens


@given(grids_with_whole_boxes())
def test_a_box_drawn_back_is_a_box_around_it(drawn: tuple[Any, ...]) -> None:
    size, rows, cols, box = drawn
    patch_map = PatchMap.grid(size, rows, cols)
    back = patch_map.region(patch_map.tokens(box))
    assert back.kind == "box"
    assert back.box[0] <= box[0] < box[2] <= back.box[2] + 1e-9 * size[0]
    assert back.box[1] <= box[1] < box[3] <= back.box[3] + 1e-9 * size[1]
    assert patch_map.tokens(back) == patch_map.tokens(box)


def test_scattered_tokens_become_exactly_their_patches() -> None:
    patch_map = PatchMap.grid((30, 20), 2, 3)
    region = patch_map.region([5, 0, 0])
    assert region == Region.from_boxes([(0, 0, 10, 10), (20, 10, 30, 20)])
    assert region.mask((30, 20)).sum() == 200
    assert region.iou(Region.from_box((0, 0, 10, 20)), (30, 20)) == pytest.approx(100 / 300)


@given(sides, sides, counts, counts, st.tuples(*[st.floats(-1, 2)] * 4))
def test_a_grid_on_a_padded_or_cropped_canvas_is_cut_at_the_image(
    width: int, height: int, rows: int, cols: int, shares: list[float]
) -> None:
    x1, x2 = sorted((shares[0] * width, shares[1] * width))
    y1, y2 = sorted((shares[2] * height, shares[3] * height))
    assume(x2 - x1 > 1e-3 and y2 - y1 > 1e-3)
    patch_map = PatchMap.grid((width, height), rows, cols, box=(x1, y1, x2, y2), view=OVERVIEW)
    assert len(patch_map) == rows * cols
    boxes = patch_map.boxes.reshape(rows, cols, 4)
    for (row, col), seen in np.ndenumerate(patch_map.spatial.reshape(rows, cols)):
        cell = (
            max(x1 + col * (x2 - x1) / cols, 0),
            max(y1 + row * (y2 - y1) / rows, 0),
            min(x1 + (col + 1) * (x2 - x1) / cols, width),
            min(y1 + (row + 1) * (y2 - y1) / rows, height),
        )
        if seen:
            assert boxes[row, col] == pytest.approx(cell)
        else:
            assert np.isnan(boxes[row, col]).all()
            assert cell[2] - cell[0] <= 1e-6 or cell[3] - cell[1] <= 1e-6


def test_what_no_token_sees_has_no_tokens() -> None:
    cropped = PatchMap.grid((40, 20), 2, 2, box=(10, 0, 30, 20))
    assert cropped.tokens((0, 0, 10, 20)) == []
    assert cropped.tokens((0, 0, 11, 20)) == [0, 2]


def tiles_and_overview(views: Views) -> PatchMap:
    """Two tiles of 2 x 2, each with a separator, over the left three quarters; then an overview of 1 x 2."""
    size = (40, 20)
    parts = [
        PatchMap.grid(size, 2, 2, box=(0, 0, 15, 20)),
        PatchMap.blank(size, 1),
        PatchMap.grid(size, 2, 2, box=(15, 0, 30, 20)),
        PatchMap.blank(size, 1),
        PatchMap.grid(size, 1, 2, view=OVERVIEW),
    ]
    return PatchMap.join(parts, views=views)


@pytest.mark.parametrize(
    ("views", "both", "overview_only"),
    [("all", [5, 7, 10, 11], [11]), ("tiles", [5, 7], [11]), ("overview", [10, 11], [11])],
)
def test_the_views_rule_chooses_between_tiles_and_overview(
    views: Views, both: list[int], overview_only: list[int]
) -> None:
    patch_map = tiles_and_overview(views)
    assert len(patch_map) == 12
    assert patch_map.tokens((16, 0, 22, 20)) == both
    assert tiles_and_overview("all").tokens((16, 0, 22, 20), views=views) == both
    assert (
        patch_map.tokens((31, 0, 40, 20)) == overview_only
    )  # no tile sees it: better seen small than not at all


def test_the_views_rule_means_nothing_where_there_is_one_view() -> None:
    for view in (TILE, OVERVIEW):
        for views in ("all", "tiles", "overview"):
            assert PatchMap.grid((40, 20), 1, 2, view=view, views=views).tokens((0, 0, 5, 5)) == [0]


def test_separators_see_nothing() -> None:
    patch_map = tiles_and_overview("all")
    assert np.flatnonzero(patch_map.token_views == NOT_SPATIAL).tolist() == [4, 9]
    assert not {4, 9} & set(patch_map.tokens((0, 0, 40, 20)))
    assert not {4, 9} & set(patch_map.tokens(np.ones((20, 40), bool)))
    assert patch_map.region([0, 4]) == patch_map.region([0])
    with pytest.raises(ValueError, match=r"none of the tokens \[4\]"):
        patch_map.region([4])


@pytest.mark.parametrize("token", [-1, 6])
def test_a_token_that_is_not_there_is_refused(token: int) -> None:
    patch_map = PatchMap.grid((30, 20), 2, 3)
    with pytest.raises(ValueError, match="tokens 0 to 5"):
        patch_map.region([token])
    with pytest.raises(ValueError, match="6 image tokens"):
        token_regions([patch_map], [token])


def test_tokens_of_an_example_are_counted_through_its_images() -> None:
    maps = [PatchMap.grid((30, 20), 2, 3), tiles_and_overview("all"), PatchMap.grid((10, 10), 1, 1)]
    assert region_tokens(maps, Region.from_box((0, 0, 5, 5), image=0)) == [0]
    assert region_tokens(maps, Region.from_box((0, 0, 5, 5), image=1)) == [6, 16]
    assert region_tokens(maps, Region.from_box((0, 0, 5, 5), image=2)) == [18]
    found = token_regions(maps, [18, 6, 0, 10])  # 10 is a separator
    assert found == [
        Region.from_box((0, 0, 10, 10)),
        Region.from_box((0, 0, 7.5, 10), image=1),
        Region.from_box((0, 0, 10, 10), image=2),
    ]
    assert token_regions(maps, [10]) == token_regions(maps, []) == []
    with pytest.raises(ValueError, match="image 3, but the example has 3"):
        region_tokens(maps, Region.from_box((0, 0, 5, 5), image=3))


def test_a_map_is_a_value() -> None:
    patch_map = tiles_and_overview("tiles")
    assert patch_map == tiles_and_overview("tiles") == pickle.loads(pickle.dumps(patch_map))
    assert patch_map != tiles_and_overview("all")
    with pytest.raises(ValueError, match="read-only"):
        patch_map.boxes[0, 0] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_views": [0]}, "one view"),
        ({"token_views": [0, 2]}, "a view is"),
        ({"token_views": [0, -1]}, "NaN for a box"),
        ({"boxes": [[0, 0, 5, 5], [5, 0, 5, 5]]}, "token 1 is empty"),
        ({"boxes": [[0, 0, 5, 5], [math.nan] * 4]}, "token 1 is empty or not a number"),
        ({"boxes": [[0, 0, 5, 5], [0, 0, math.inf, 5]]}, "token 1 is empty or not a number"),
        ({"views": "thumbnail"}, 'all, tiles, overview, got "thumbnail"'),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(change: dict, message: str) -> None:
    values = {"image_size": (10, 5), "boxes": [[0, 0, 5, 5], [5, 0, 10, 5]], "token_views": [0, 0], **change}
    with pytest.raises(ValueError, match=message):
        PatchMap(**values)


def test_parts_of_different_images_do_not_join() -> None:
    with pytest.raises(ValueError, match="one image"):
        PatchMap.join([PatchMap.blank((10, 5), 1), PatchMap.blank((5, 10), 1)])
    with pytest.raises(ValueError, match="0 x 3"):
        PatchMap.grid((10, 10), 0, 3)
