"""Packs: complete, within their limits, in time, and nearly full."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from v1lit.data.config import PackingConfig
from v1lit.data.encode.encoding import Encoded
from v1lit.data.sampling.packing import fullest, pack
from v1lit.grounding.patch_map import PatchMap

LENGTH = 60


def patches(count: int) -> PatchMap:
    return PatchMap.grid((64, 64), 1, count)


def example(name: int, tokens: int, images: tuple[int, ...] = ()) -> Encoded:
    zeros = torch.zeros(tokens, dtype=torch.long)
    return Encoded(str(name), zeros, zeros, {}, tuple(map(patches, images)), ())


def made(sizes: list[tuple[int, tuple[int, ...]]]) -> list[Encoded]:
    return [example(number, tokens, images) for number, (tokens, images) in enumerate(sizes)]


def names(packs: list[list[Encoded]]) -> list[list[int]]:
    return [[int(one.id) for one in group] for group in packs]


SIZES = st.lists(
    st.tuples(st.integers(1, LENGTH), st.lists(st.integers(1, 9), max_size=3).map(tuple)), max_size=80
)
CAPS = st.tuples(st.none() | st.integers(3, 6), st.none() | st.integers(27, 40))


@given(sizes=SIZES, look_ahead=st.integers(1, 20), caps=CAPS)
def test_every_example_once_within_all_limits_the_same_each_time(
    sizes: list[tuple[int, tuple[int, ...]]], look_ahead: int, caps: tuple[int | None, int | None]
) -> None:
    config = PackingConfig(LENGTH, look_ahead, *caps)
    packs = list(pack(made(sizes), config))
    assert sorted(chain(*names(packs))) == list(range(len(sizes)))
    for group in packs:
        maps = [one for example in group for one in example.patch_maps]
        assert sum(len(example.input_ids) for example in group) <= LENGTH
        assert len(maps) <= (caps[0] or len(maps))
        assert sum(map(len, maps)) <= (caps[1] or 10**6)
    assert names(list(pack(made(sizes), config))) == names(packs)


@given(sizes=SIZES, look_ahead=st.integers(1, 20), caps=CAPS)
def test_no_example_waits_for_more_packs_than_the_look_ahead(
    sizes: list[tuple[int, tuple[int, ...]]], look_ahead: int, caps: tuple[int | None, int | None]
) -> None:
    begun = 0
    read_before: list[int] = []

    def source() -> Iterator[Encoded]:
        for one in made(sizes):
            read_before.append(begun)
            yield one

    for number, group in enumerate(pack(source(), PackingConfig(LENGTH, look_ahead, *caps))):
        for name in names([group])[0]:
            assert number - read_before[name] < look_ahead
            assert number <= name
        assert int(group[0].id) == min(names([group])[0])
        begun += 1


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
    lengths = np.random.default_rng(0).integers(*spread, 600)
    packs = list(pack([example(n, int(tokens)) for n, tokens in enumerate(lengths)], PackingConfig(8192)))
    filled = [sum(len(one.input_ids) for one in group) / 8192 for group in packs]
    assert np.mean(filled) > 0.98
    assert np.mean(filled[:-2]) > 0.99


def test_memory_is_bounded_by_rows_where_examples_are_long() -> None:
    read = 0

    def source() -> Iterator[Encoded]:
        nonlocal read
        for number in range(100):
            read += 1
            yield example(number, 30)

    next(pack(source(), PackingConfig(60)))
    assert read == 12  # six rows of two


def test_examples_that_fit_no_row_are_named_with_the_key_and_the_way_out() -> None:
    for config, message in (
        (PackingConfig(50), "'0': it has 60 tokens, more than the 50 of data.packing.length.*max_tokens"),
        (PackingConfig(60, max_images=1), "'0': it has 2 images, more than the 1 of data.packing.max_images"),
        (PackingConfig(60, max_image_tokens=4), "has 5 image tokens.*packing.max_image_tokens.*max_pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            list(pack([example(0, 60, (2, 3))], config))
    with pytest.raises(ValueError, match=r"data.packing.length is not set"):
        list(pack([], PackingConfig()))


@given(value=st.integers(max_value=0), name=st.sampled_from(["length", "look_ahead", "max_images"]))
def test_limits_below_one_are_refused_by_name(value: int, name: str) -> None:
    assume(value > -(10**6))
    with pytest.raises(ValueError, match=f"data.packing.{name} is {value}"):
        PackingConfig(**{"length": 100, name: value})


def test_caps_without_a_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.packing.max_images is 4, but without data.packing.length"):
        PackingConfig(max_images=4)
