"""Text that is sent piece by piece is the text of all, up to a stop text, whatever the pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v1lit.serving.text import TextStream
from v1lit.testing.models import processor


def said(family: str, ids: list[int], stop: list[str]) -> str:
    stream = TextStream(processor(family), stop)
    return "".join([*map(stream.add, ids), stream.end()])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_nothing_is_lost_or_changed(family: str, text: str) -> None:
    ids = processor(family).encode_text(text, special=False)
    assert said(family, ids, []) == processor(family).decode(ids)


@given(
    text=st.text("ab<>c", max_size=20), stop=st.lists(st.text("ab<>c", min_size=1, max_size=3), max_size=2)
)
def test_it_ends_before_the_first_stop_text(text: str, stop: list[str]) -> None:
    ids = processor("qwen2_5_vl").encode_text(text, special=False)
    whole = said("qwen2_5_vl", ids, stop)
    if not any(one in text for one in stop):
        assert whole == text
    else:
        assert text.startswith(whole)
        assert not any(one in whole for one in stop)
        rest = text[len(whole) :]
        assert any(rest.startswith(one) for one in stop)


def test_pointers_are_written_as_in_a_trace() -> None:
    of = processor("qwen2_5_vl")
    assert said("qwen2_5_vl", [of.pointer_start + 3], []) == "<|copy_3|>"
