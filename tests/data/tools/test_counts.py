"""Counts, names and extremes: the numbers are right, and nothing grows with the data."""

from __future__ import annotations

import math
import random

import pytest

from v1lit.data.tools import counts as module
from v1lit.data.tools.counts import EXTREMES, Counts, Extremes, Names, Place, printable

SOME = Counts({1: 2, 4: 1, 10: 1})
"""1, 1, 4, 10."""


def test_sum_mean_and_quantiles_are_those_of_the_numbers() -> None:
    assert (SOME.sum, SOME.total(), SOME.mean) == (16, 4, 4.0)
    assert [SOME.quantile(share) for share in (0.0, 0.5, 0.51, 0.75, 0.76, 1.0)] == [1, 1, 4, 4, 10, 10]


def test_of_nothing_there_is_no_mean_and_no_bin() -> None:
    assert math.isnan(Counts().mean)
    assert Counts().quantile(0.5) == 0
    assert Counts().even_edges(5) == []
    assert Counts().in_bins([]) == []


@pytest.mark.parametrize(
    ("numbers", "most", "edges"),
    [
        ([45], 24, [45, 46]),
        (range(10), 10, list(range(11))),
        (range(11), 10, [0, 2, 4, 6, 8, 10, 12]),
        ([3, 1_000_000], 24, list(range(0, 1_050_001, 50_000))),
        ([17, 42], 3, [0, 20, 40, 60]),
    ],
)
def test_bins_are_few_and_have_round_edges(numbers: list[int], most: int, edges: list[int]) -> None:
    found = Counts(numbers)
    assert found.even_edges(most) == edges
    assert sum(found.in_bins(edges)) == found.total()


def test_a_lower_edge_belongs_to_its_bin() -> None:
    assert SOME.in_bins([1, 4, 11]) == [2, 2]
    assert SOME.in_bins([0, 2, 5, 11]) == [2, 1, 1]


def test_more_names_than_are_told_apart_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_NAMES", 2)
    names, more = Names(), Names()
    for name in "aabcc":
        names.note(name)
    for name in "cad":
        more.note(name)
    names.update(more)
    assert names.counts == {"a": 3, "b": 1}
    assert names.others == 4, "c twice, and in the other one c, and d behind c and a"
    assert names.most_common(1) == ([("a", 3)], 5)


def test_names_of_one_count_come_in_the_order_of_their_letters() -> None:
    names = Names()
    for name in ("b", "c", "a", "c"):
        names.note(name)
    assert names.most_common(2) == ([("c", 2), ("a", 1)], 1)


def test_nothing_in_a_name_steers_a_terminal_or_turns_the_line() -> None:
    assert printable("\x1b[31mred\n\u202eback") == "\ufffd[31mred\ufffd\ufffdback"
    assert printable("x" * 61) == "x" * 59 + "…"
    assert printable("x" * 60) == "x" * 60
    names = Names()
    names.note("a\0" + "y" * 10**6)
    (name,) = names.counts
    assert name == "a\ufffd" + "y" * 57 + "…"


def places(values: list[float]) -> list[Place]:
    return [Place(value, "shard", index, f"id{index}") for index, value in enumerate(values)]


def kept(extremes: Extremes) -> tuple[list[int], list[int]]:
    return [one.index for one in extremes.smallest], [one.index for one in extremes.largest]


def test_the_places_at_either_end_are_kept_and_of_equal_ones_the_first() -> None:
    extremes = Extremes()
    for place in places([5, 1, 9, 5, 5, 9, 2, 1, 9, 9, 9]):
        extremes.note(place)
    assert kept(extremes) == ([1, 7, 6, 0], [2, 5, 8, 9])


def test_extremes_of_parts_are_those_of_the_whole() -> None:
    values = [float(value) for value in random.Random(0).choices(range(9), k=40)]
    whole, first, second = Extremes(), Extremes(), Extremes()
    for place in places(values):
        whole.note(place)
        (first if place.index < 17 else second).note(place)
    first.update(second)
    assert first == whole
    assert len(first.smallest) == len(first.largest) == EXTREMES
