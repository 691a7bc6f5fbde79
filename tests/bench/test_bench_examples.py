"""What the benchmarks learn from: full rows, the same examples padded and flat, the stated figures."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import examples
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from v1lit.data.encode.encoding import Encoded
from v1lit.labels import IGNORE

START = 2048
ABSENT = Path("absent")
PROCESSOR = examples.make_processor(START, 112)


def of_length(length: int) -> Encoded:
    return Encoded(str(length), torch.zeros(length), torch.zeros(length), {}, (), ())


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 3))
def test_rows_are_never_overfilled(lengths: list[int], rows: int) -> None:
    offered = [of_length(length) for length in (*[1] * rows, *lengths)]
    filled = examples.fill(cycle(offered), rows, 50, patience=4 * len(offered))
    assert all(sum(len(one.input_ids) for one in row) <= 50 for row in filled)
    assert sum(len(row) for row in filled) >= rows


def test_an_example_goes_into_the_fullest_row_that_it_fits() -> None:
    filled = examples.fill(map(of_length, (30, 25, 20, 40, 18, 7, 9)), 2, 50)
    assert [[int(one.id) for one in row] for row in filled] == [[30, 20], [25, 18, 7]]


def test_examples_that_fit_nowhere_are_an_error() -> None:
    with pytest.raises(ValueError, match="no example fits into a row of 5 tokens"):
        examples.fill(iter([of_length(6)] * 9), 2, 5, patience=3)


def test_the_drawn_examples_have_the_figures_that_are_stated() -> None:
    shapes = examples.SHAPES
    images, pointers = sum(s.rows * s.cols for s in shapes), sum(s.pointers for s in shapes)
    learned = pointers + sum(s.text for s in shapes)
    tokens = images + learned + sum(s.prompt for s in shapes)
    stated = (604, 0.553, 0.382, 0.502)
    assert (tokens / 16, images / tokens, learned / tokens, pointers / learned) == pytest.approx(
        stated, rel=0.01
    )


def test_drawn_examples_have_the_lengths_of_their_shapes() -> None:
    processor = examples.make_processor(START)
    for shape, example in zip(examples.SHAPES, examples.drawn(processor), strict=True):
        assert int((example.input_ids == processor.image_token_id).sum()) == shape.rows * shape.cols
        assert int((example.labels != IGNORE).sum()) == shape.text + shape.pointers
        assert int((example.input_ids >= START).sum()) == shape.pointers
        assert int(example.input_ids.max()) < START + shape.rows * shape.cols
        assert len(example.input_ids) == shape.rows * shape.cols + shape.prompt + shape.text + shape.pointers


def test_pointers_of_a_joined_example_stay_with_their_image() -> None:
    one, two = list(examples.drawn(PROCESSOR))[:2]
    both = examples.joined([one, two], PROCESSOR)
    before = int((one.input_ids == PROCESSOR.image_token_id).sum())
    pointed = both.input_ids[len(one.input_ids) :] - START
    expected = two.input_ids - START + before
    assert torch.equal(pointed[pointed >= 0], expected[two.input_ids >= START])
    assert torch.equal(both.input_ids[: len(one.input_ids)], one.input_ids)
    assert torch.equal(both.labels[both.labels >= START], both.input_ids[both.input_ids >= START])


def test_flat_and_padded_hold_the_same_examples() -> None:
    parts = list(examples.drawn(PROCESSOR))[:3]
    batch = examples.batch_of(parts, 700, PROCESSOR.pad_token_id)
    assert batch.input_ids.shape == (3, 700)
    kept = batch.attention_mask.bool()
    assert torch.equal(batch.input_ids[kept], batch.flat_ids[0])
    assert torch.equal(batch.labels[kept], batch.flat_labels[0])
    assert (batch.labels[~kept] == IGNORE).all()
    assert batch.lengths == tuple(len(one.input_ids) for one in parts)


def test_real_examples_are_taken_where_they_are(shared: Path) -> None:
    data = shared / "data" / "v1g_real"
    ids = [example.id for example, _ in zip(examples.stream(PROCESSOR, data), range(3), strict=False)]
    again = [example.id for example, _ in zip(examples.stream(PROCESSOR, data), range(3), strict=False)]
    assert ids == again
    assert all(id.startswith(("bccd_", "raccoon_")) for id in ids)
    assert examples.describe(data) == "examples of v1g_real"
    assert next(examples.stream(PROCESSOR, ABSENT)).id == "drawn_0"
