"""Boxes of every declared format arrive as pixels of the original image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v1lit.data.importing.box_format import FULL, IMAGES, ORDERS, UNITS, BoxFormat
from v1lit.errors import OptionError


@st.composite
def boxes(draw):
    width, height = draw(st.integers(8, 2000)), draw(st.integers(8, 2000))
    left, top = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return (left, top, right, bottom), width, height


@given(boxes(), st.sampled_from(UNITS), st.sampled_from(ORDERS), st.sampled_from(IMAGES))
def test_a_box_written_in_any_format_comes_back(drawn, unit, order, of):
    (left, top, right, bottom), width, height = drawn
    size = (336, 224) if of == "resized" and unit == "pixels" else None
    side = max(width, height)
    dx, dy = ((side - width) // 2, (side - height) // 2) if of == "padded" else (0, 0)
    whole = (side, side) if of == "padded" else (width, height)
    end = size or whole if unit == "pixels" else (FULL[unit], FULL[unit])
    x1, x2 = ((x + dx) / whole[0] * end[0] for x in (left, right))
    y1, y2 = ((y + dy) / whole[1] * end[1] for y in (top, bottom))
    written = {
        "xyxy": (x1, y1, x2, y2),
        "xywh": (x1, y1, x2 - x1, y2 - y1),
        "cxcywh": ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
        "point": (x1, y1),
    }[order]
    expected = (left, top) if order == "point" else (left, top, right, bottom)
    assert BoxFormat(unit, order, of, size).to_pixels(written, (width, height)) == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ((1, 2, 3), "neither a box of four numbers nor a point"),
        ((1, 2, float("nan"), 4), "no finite number"),
        ((50, 50, 20, 60), "no area"),
        ((10, 10, 300, 20), "outside of the 100x80 image"),
    ],
)
def test_an_impossible_box_is_refused_with_its_numbers(numbers, why):
    with pytest.raises(ValueError, match=why):
        BoxFormat().to_pixels(numbers, (100, 80))


@pytest.mark.parametrize(
    "given", [{"unit": "inches"}, {"order": "yxyx"}, {"of": "resized"}, {"size": (3, 4)}]
)
def test_a_format_that_cannot_be_is_refused(given):
    with pytest.raises(OptionError):
        BoxFormat(**given)
