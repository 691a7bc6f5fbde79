"""Rows that are filled: complete, within their limits, in time, nearly full, and alike in image tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, combinations, islice

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from v1lit.data.config import PackingConfig
from v1lit.data.example import ExampleRef
from v1lit.data.lengths.length import Length
from v1lit.data.sampling.mixture import GlobalSequence
from v1lit.data.sampling.packing import Packer, balanced, fullest
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


ITEMS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 6), st.integers(0, 12)), max_size=9)


@given(sizes=ITEMS, room=st.integers(0, 40), spare=st.integers(0, 12), target=st.integers(-5, 40))
def test_a_balanced_set_is_within_its_limits_and_as_full_as_any_where_no_cap_is_in_the_way(
    sizes: list[tuple[int, int, int]], room: int, spare: int, target: int
) -> None:
    def tokens(chosen: list[int]) -> int:
        return sum(sizes[place][0] for place in chosen)

    near = balanced(sizes, room, spare, target, 0)
    assert len(set(near)) == len(near)
    assert tokens(near) <= room
    assert sum(sizes[place][1] for place in near) <= spare
    free = [(tokens, 0, image_tokens) for tokens, _, image_tokens in sizes]
    assert tokens(balanced(free, room, 0, target, 0)) == tokens(fullest([size[:2] for size in free], room, 0))


@given(lengths=LENGTHS, caps=CAPS)
@example(lengths=[Length(7, 3, 1), Length(21, 8, 1), Length(21, 0, 1), Length(30, 16, 1)], caps=(None, 23))
def test_a_row_is_as_full_as_without_a_look_at_its_images(
    lengths: list[Length], caps: tuple[int | None, int | None]
) -> None:
    packer: Packer[int] = Packer(PackingConfig(LENGTH, 20, *caps))
    for index, length in enumerate(lengths):
        if packer.problem(length) is None:
            packer.add(index, length)
    while packer.waiting:
        first, *others = packer.waiting
        sizes = [(other.tokens, other.load) for other in others]
        spare = (caps[0] or 1) * (caps[1] or 1) - first.load
        full = fullest(sizes, LENGTH - first.tokens, spare)
        tokens = first.tokens + sum(sizes[place][0] for place in full)
        assert sum(lengths[index].tokens for index in packer.row()) == tokens


def test_rows_of_all_micro_batches_have_much_the_same_image_tokens() -> None:
    """Photographs, texts and small images, as 16 micro-batches pack them in 20 steps."""
    rng = np.random.default_rng(0)
    kinds = [(300, 0), (600, 400), (900, 800), (1500, 1400), (200, 60)]
    lengths = [
        Length(int(tokens * scale), int(image_tokens * scale), 1)
        for tokens, image_tokens in rng.choice(kinds, 400)
        for scale in (rng.uniform(0.7, 1.3),)
    ]
    sequence = GlobalSequence([SourceOrder([400], Shuffle())], [10**6], 0)

    def largest_over_mean(measure: Measure) -> float:
        rows = np.zeros((16, 20))
        for micro_batch in range(16):
            stream = Substream(sequence, 0, Remaining(), micro_batch, 16)
            plans = filled_rows(stream, MicroBatchState(), PackingConfig(8192), measure)
            for step, plan in enumerate(islice(plans, 20)):
                rows[micro_batch, step] = sum(lengths[ref.index].image_tokens for ref in plan.refs)
        return float((rows.max(0) / rows.mean(0)).mean())

    assert largest_over_mean(lambda ref: Length(lengths[ref.index].tokens, 0, 0)) > 1.12
    assert largest_over_mean(lambda ref: lengths[ref.index]) < 1.08


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
    assert len(measured) == 24  # twelve rows of two


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
