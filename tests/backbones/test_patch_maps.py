"""Every family's patch map says which pixels of the original each token sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v1lit.backbones import get_backbone, list_backbones
from v1lit.backbones.image_options import capped_size
from v1lit.backbones.qwen import resized_size
from v1lit.grounding.patch_map import OVERVIEW, TILE
from v1lit.grounding.raster import union_area

sides = st.integers(1, 3000)


def golden_cases(shared: Path) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((shared / "golden/v1_reference/regions.json").read_text())
    assert len(cases) == 160
    return cases


def limits(case: dict[str, Any]) -> dict[str, Any]:
    return {key: case[key] for key in ("min_pixels", "max_pixels", "patch_size", "merge_size")}


def ellipse_mask(case: dict[str, Any]) -> np.ndarray:
    (width, height), (cx, cy, rx, ry) = case["image_size"], case["ellipse"]
    y, x = np.mgrid[:height, :width]
    inside: np.ndarray = ((x - cx) / max(rx, 1)) ** 2 + ((y - cy) / max(ry, 1)) ** 2 <= 1
    return inside


def test_resized_sizes_equal_the_reference(shared: Path) -> None:
    for index, case in enumerate(golden_cases(shared)):
        cell = case["patch_size"] * case["merge_size"]
        found = resized_size(tuple(case["image_size"]), cell, case["min_pixels"], case["max_pixels"])
        assert list(found) == case["resized_size"], f"case {index}"


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_tokens_of_boxes_equal_the_reference(shared: Path, name: str) -> None:
    backbone = get_backbone(name)
    for index, case in enumerate(golden_cases(shared)):
        patch_map = backbone.patch_map(image_size=tuple(case["image_size"]), **limits(case))
        same = patch_map.tokens(tuple(case["box"])) == case["pointer_ids"]
        assert same, f"case {index}"


def test_tokens_of_masks_equal_the_reference(shared: Path) -> None:
    cases = [(index, case) for index, case in enumerate(golden_cases(shared)) if "ellipse" in case]
    assert len(cases) == 40
    for index, case in cases:
        patch_map = get_backbone("qwen2_5_vl").patch_map(tuple(case["image_size"]), **limits(case))
        same = patch_map.tokens(ellipse_mask(case)) == case["mask_pointer_ids"]
        assert same, f"case {index}"


@pytest.mark.parametrize("name", list_backbones())
@pytest.mark.parametrize("image_size", [(640, 480), (97, 1300), (28, 28)])
def test_the_published_settings_are_the_defaults(name: str, image_size: tuple[int, int]) -> None:
    backbone = get_backbone(name)
    given_explicitly = backbone.patch_map(image_size, **backbone.image_processor().options)
    assert backbone.patch_map(image_size) == given_explicitly


def test_published_token_counts() -> None:
    assert len(get_backbone("qwen2_5_vl").patch_map((1176, 980))) == 42 * 35
    assert len(get_backbone("llava").patch_map((640, 480))) == 576
    # 4:3 makes 4x3 tiles, and a thumbnail follows them.
    assert len(get_backbone("internvl").patch_map((1600, 1200))) == 13 * 256
    assert len(get_backbone("internvl").patch_map((1600, 1200), max_patches=2)) == 256


def test_llava_sees_the_middle_only() -> None:
    patch_map = get_backbone("llava").patch_map((672, 336))
    assert patch_map.tokens((0, 0, 168, 336)) == []
    assert patch_map.tokens((504, 0, 672, 336)) == []
    assert patch_map.tokens((168, 0, 504, 336)) == list(range(576))


def test_llava_with_padding_sees_everything_and_the_padding_sees_nothing() -> None:
    patch_map = get_backbone("llava").patch_map((672, 336), do_pad=True)
    middle = list(range(6 * 24, 18 * 24))
    assert patch_map.tokens((0, 0, 672, 336)) == middle
    assert np.flatnonzero(patch_map.spatial).tolist() == middle


def test_internvl_tiles_come_before_the_thumbnail_and_the_rule_chooses() -> None:
    size, corner = (896, 448), (0, 0, 10, 10)
    backbone = get_backbone("internvl")
    patch_map = backbone.patch_map(size)
    assert (patch_map.token_views[:-256] == TILE).all()
    assert (patch_map.token_views[-256:] == OVERVIEW).all()
    thumbnail = len(patch_map) - 256
    assert backbone.patch_map(size, views="all").tokens(corner) == [0, thumbnail]
    assert backbone.patch_map(size, views="tiles").tokens(corner) == [0]
    assert backbone.patch_map(size, views="overview").tokens(corner) == [thumbnail]


def test_internvl_without_tiles_is_one_view() -> None:
    patch_map = get_backbone("internvl").patch_map((896, 448), crop_to_patches=False)
    assert len(patch_map) == 256
    assert (patch_map.token_views == TILE).all()


@pytest.mark.parametrize("name", list_backbones())
def test_max_side_keeps_original_pixels(name: str) -> None:
    backbone = get_backbone(name)
    capped = backbone.patch_map((2000, 1000), max_side=500)
    assert capped.image_size == (2000, 1000)
    assert len(capped) == len(backbone.patch_map((500, 250)))
    np.testing.assert_allclose(capped.boxes, backbone.patch_map((500, 250)).boxes * 4)
    assert backbone.patch_map((400, 300), max_side=500) == backbone.patch_map((400, 300))


@given(sides, sides, sides)
def test_capping_keeps_the_aspect_to_a_pixel(width: int, height: int, cap: int) -> None:
    new = capped_size((width, height), cap)
    assert max(new) == min(cap, max(width, height))
    assert min(new) >= 1
    scale = max(new) / max(width, height)
    assert abs(new[0] - width * scale) <= 1
    assert abs(new[1] - height * scale) <= 1


@given(st.sampled_from(list_backbones()), st.integers(8, 1500), st.integers(8, 1500))
def test_tokens_see_parts_of_the_image_and_a_grid_covers_it_once(name: str, width: int, height: int) -> None:
    patch_map = get_backbone(name).patch_map((width, height), max_side=1000)
    boxes = patch_map.boxes[patch_map.spatial]
    assert (boxes >= 0).all()
    assert (boxes <= (width, height, width, height)).all()
    tiles = patch_map.boxes[patch_map.token_views == TILE]
    area = ((tiles[:, 2] - tiles[:, 0]) * (tiles[:, 3] - tiles[:, 1])).sum()
    if name.startswith("llava"):  # whose tokens leave out edges, or overlap
        assert union_area(tiles) <= width * height * (1 + 1e-9)
    else:
        assert area == pytest.approx(width * height)


@pytest.mark.parametrize("name", list_backbones())
def test_mistakes_are_named(name: str) -> None:
    backbone = get_backbone(name)
    with pytest.raises(ValueError, match=r"max_sied is .* has no such option; did you mean 'max_side'"):
        backbone.patch_map((100, 100), max_sied=5)
    with pytest.raises(ValueError, match=r"image height is .* must be a positive integer"):
        backbone.patch_map((100, 0))
    with pytest.raises(ValueError, match="image_size must be"):
        backbone.patch_map(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="views"):
        backbone.patch_map((100, 100), views="some")  # type: ignore[arg-type]


def test_a_sliver_is_refused_as_the_processor_does() -> None:
    with pytest.raises(ValueError, match="too narrow"):
        get_backbone("qwen2_5_vl").patch_map((2010, 10))
    assert len(get_backbone("qwen2_5_vl").patch_map((2000, 10)))


@pytest.mark.parametrize(("size", "options"), [((1, 4000), {}), ((2, 12000), {"do_pad": True})])
def test_llava_refuses_what_its_processor_would_make_too_large(
    size: tuple[int, int], options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels is too narrow: it would take a canvas"):
        get_backbone("llava").patch_map(size, **options)
    assert len(get_backbone("llava").patch_map((4, 4000), **options))
