"""Rows that are filled: complete, within their limits, in time, and nearly full."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from v1lit.data.config import PackingConfig
from v1lit.data.example import ExampleRef
from v1lit.data.lengths.length import Length
from v1lit.data.sampling.mixture import GlobalSequence
from v1lit.data.sampling.packing import Packer, fullest
from v1lit.data.sampling.remaining import MicroBatchState, Remaining
from v1lit.data.sampling.rows import Measure, MicroBatchPlan, Substream, filled_rows
from v1lit.data.sampling.shuffle import Shuffle, SourceOrder

LENGTH = 60


def rows_of(num_examples: int, config: PackingConfig, measure: Measure) -> Iterator[MicroBatchPlan]:
    """The rows of some examples, read in their order by one micro-batch."""
    order = SourceOrder([num_examples], Shuffle(on=False))
    stream = Substream(GlobalSequence([order], [num_examples], 0), 0, Remaining(), 0, 1)
    return filled_rows(stream, MicroBatchState(), config, measure)


def packed(lengths: Sequence[Length], config: PackingConfig) -> list[list[int]]:
    """The examples of every row, by their index."""
    rows = rows_of(len(lengths), config, lambda ref: lengths[ref.index])
    return [[ref.index for ref in row.refs] for row in rows]


LENGTHS = st.lists(
    st.builds(
        lambda tokens, images: Length(tokens, sum(images), len(images)),
        st.integers(1, LENGTH),
        st.lists(st.integers(1, 9), max_size=3),
    ),
    max_size=80,
)
CAPS = st.tuples(st.none() | st.integers(3, 6), st.none() | st.integers(27, 40))


@given(lengths=LENGTHS, look_ahead=st.integers(1, 20), caps=CAPS)
def test_every_example_once_within_all_limits_the_same_each_time(
    lengths: list[Length], look_ahead: int, caps: tuple[int | None, int | None]
) -> None:
    config = PackingConfig(LENGTH, look_ahead, *caps)
    rows = packed(lengths, config)
    assert sorted(chain(*rows)) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[index].tokens for index in row) <= LENGTH
        assert sum(lengths[index].images for index in row) <= (caps[0] or 10**6)
        assert sum(lengths[index].image_tokens for index in row) <= (caps[1] or 10**6)
    assert packed(lengths, config) == rows


@given(lengths=LENGTHS, look_ahead=st.integers(1, 20), caps=CAPS)
def test_no_example_waits_for_more_rows_than_the_look_ahead(
    lengths: list[Length], look_ahead: int, caps: tuple[int | None, int | None]
) -> None:
    num_rows = 0
    rows_before: list[int] = []

    def measure(ref: ExampleRef) -> Length:
        rows_before.append(num_rows)
        return lengths[ref.index]

    opened = -1
    for row in rows_of(len(lengths), PackingConfig(LENGTH, look_ahead, *caps), measure):
        indices = [ref.index for ref in row.refs]
        for index in indices:
            assert num_rows - rows_before[index] < look_ahead
            assert num_rows <= index
        assert opened < indices[0] == min(indices)
        opened = indices[0]
        num_rows += 1


@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 6)), max_size=7),
    room=st.integers(0, 40),
    spare=st.integers(0, 12),
)
def test_the_chosen_set_is_the_fullest_of_all_that_fit(
    sizes: list[tuple[int, int]], room: int, spare: int
) -> None:
    chosen = fullest(sizes, room, spare)
    assert len(set(chosen)) == len(chosen)
    every = chain.from_iterable(combinations(range(len(sizes)), n) for n in range(len(sizes) + 1))
    fitting = [
        total
        for places in every
        if (total := sum(sizes[place][0] for place in places)) <= room
        and sum(sizes[place][1] for place in places) <= spare
    ]
    assert sum(sizes[place][0] for place in chosen) == max(fitting)
    assert sum(sizes[place][1] for place in chosen) <= spare


@pytest.mark.parametrize(
    "spread", [(100, 400), (200, 1200), (500, 4000)], ids=["short", "as real ones", "long"]
)
def test_rows_are_full_but_for_the_last_ones(spread: tuple[int, int]) -> None:
    tokens = np.random.default_rng(0).integers(*spread, 600)
    rows = packed([Length(int(count), 0, 0) for count in tokens], PackingConfig(8192))
    filled = [tokens[row].sum() / 8192 for row in rows]
    assert np.mean(filled) > 0.98
    assert np.mean(filled[:-2]) > 0.99


def test_memory_is_bounded_by_rows_where_examples_are_long() -> None:
    measured: list[int] = []

    def measure(ref: ExampleRef) -> Length:
        measured.append(ref.index)
        return Length(30, 0, 0)

    next(rows_of(100, PackingConfig(60), measure))
    assert len(measured) == 12  # six rows of two


def test_examples_that_fit_no_row_are_refused_with_the_key_and_the_way_out() -> None:
    for config, message in (
        (PackingConfig(50), "it has 60 tokens, more than the 50 of data.packing.length.*max_tokens"),
        (PackingConfig(60, max_images=1), "it has 2 images, more than the 1 of data.packing.max_images"),
        (PackingConfig(60, max_image_tokens=4), "has 5 image tokens.*packing.max_image_tokens.*max_pixels"),
    ):
        (row,) = rows_of(1, config, lambda ref: Length(60, 5, 2))
        assert not row.refs
        assert re.search(message, row.refused[0].reason)
    with pytest.raises(ValueError, match=r"data.packing.length is not set"):
        Packer(PackingConfig())


@given(value=st.integers(max_value=0), name=st.sampled_from(["length", "look_ahead", "max_images"]))
def test_limits_below_one_are_refused_by_name(value: int, name: str) -> None:
    assume(value > -(10**6))
    with pytest.raises(ValueError, match=f"data.packing.{name} is {value}"):
        PackingConfig(**{"length": 100, name: value})


def test_caps_without_a_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.packing.max_images is 4; without data.packing.length"):
        PackingConfig(max_images=4)
