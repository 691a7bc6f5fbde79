"""Pictures: marks are where they belong, the original stays as it was, and no text makes them fail."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from v1lit.grounding import PatchMap, Region, draw_regions, draw_tokens, panel
from v1lit.grounding.draw import POINTED, TRUE

SIZE = (80, 60)


@pytest.fixture
def image() -> Image.Image:
    return Image.new("RGB", SIZE, "#808080")


def changed(before: Image.Image, after: Image.Image) -> np.ndarray:
    return (np.asarray(before) != np.asarray(after)).any(axis=2)


def test_tokens_are_shaded_and_nothing_else_is(image: Image.Image) -> None:
    patch_map = PatchMap.join([PatchMap.grid(SIZE, 3, 4), PatchMap.blank(SIZE, 1)])
    marked = changed(image, draw_tokens(image, patch_map, [5, 6, 12]))
    assert marked[20:40, 20:60].all()
    marked[19:41, 19:61] = False  # the outline lies one pixel to either side of the edge
    assert not marked.any()
    assert not changed(image, Image.new("RGB", SIZE, "#808080")).any()


def test_tokens_fit_a_picture_of_another_size(image: Image.Image) -> None:
    patch_map = PatchMap.grid((160, 120), 3, 4)
    marked = changed(image, draw_tokens(image, patch_map, [0]))
    assert marked[:20, :20].all()
    assert not marked[22:].any()


def test_no_tokens_no_marks(image: Image.Image) -> None:
    assert not changed(image, draw_tokens(image, PatchMap.grid(SIZE, 3, 4), [])).any()


@pytest.mark.parametrize(
    "region",
    [
        Region.from_box((20, 10, 60, 50)),
        Region.from_boxes([(20, 10, 40, 50), (40, 10, 60, 50)]),
        Region.from_polygon([(20, 10), (60, 10), (60, 50), (20, 50)]),
        Region.from_mask(Region.from_box((20, 10, 60, 50)).mask(SIZE)),
    ],
    ids=lambda region: region.kind,
)
def test_the_border_of_a_region_of_any_kind_is_drawn(image: Image.Image, region: Region) -> None:
    after = draw_regions(image, [region], colors=["#ff0000"])
    red = (np.asarray(after) == (255, 0, 0)).all(axis=2)
    assert red[10, 20:60].all()
    assert red[49, 20:60].all()
    assert red[10:50, 20].all()
    assert red[10:50, 59].all()
    assert not changed(image, after)[15:45, 25:55].any()


def test_labels_are_one_for_each_region(image: Image.Image) -> None:
    regions = [Region.from_box((20, 30, 60, 50)), Region.from_box((0, 0, 5, 5))]
    assert changed(draw_regions(image, regions), draw_regions(image, regions, ["a", "ü"])).any()
    with pytest.raises(ValueError, match="2 regions, but 1 labels"):
        draw_regions(image, regions, ["a"])


@given(st.text(), st.text(max_size=300), st.text(max_size=20))
@settings(max_examples=30, deadline=None)
def test_no_text_makes_a_panel_fail(question: str, trace: str, caption: str) -> None:
    assert panel(Image.new("L", (9, 7)), question, trace, caption=caption, side=60).mode == "RGB"


@pytest.mark.parametrize(
    "text", ["red " * 5000, "W" * 20_000, "\n" * 5000, "<|copy_1|>" * 3000, "\ud800 \x00 שלום 红 😀"]
)
def test_long_and_strange_texts_stay_on_the_page(image: Image.Image, text: str) -> None:
    assert panel(image, text, text, caption=text).height < 6000


def test_a_panel_shows_image_marks_and_words(image: Image.Image) -> None:
    patch_map = PatchMap.grid(SIZE, 3, 4)
    bare = panel(image, "Where?", "There.", patch_map=patch_map)
    full = panel(
        image, "Where?", "There.", patch_map=patch_map, tokens=[5], truth=Region.from_box((20, 10, 60, 50))
    )
    assert full.width > 480 + 400
    grey = (np.asarray(bare) == 128).all(axis=2)
    assert grey.sum() == 480 * 360
    for color in (POINTED, TRUE):
        pure = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
        pixels = [(np.asarray(page) == pure).all(axis=2)[:388, :508].sum() for page in (bare, full)]
        assert pixels[0] == 0
        assert pixels[1] > 300
    assert (np.asarray(panel(image, "Where?", "", patch_map=patch_map)) != np.asarray(bare)).any()


@pytest.mark.parametrize("size", [(1, 1), (4000, 3), (3, 4000)])
def test_odd_images_have_a_panel_too(size: tuple[int, int]) -> None:
    patch_map = PatchMap.grid(size, 2, 2)
    page = panel(
        Image.new("RGB", size),
        "q",
        "t",
        patch_map=patch_map,
        tokens=[0, 3],
        truth=[Region.from_box((0, 0, 1, 1))],
    )
    assert page.height >= 100
