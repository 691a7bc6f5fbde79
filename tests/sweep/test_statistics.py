"""Intervals of paired differences, against tables, enumerations and hand-computed numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from statistics import mean

import numpy as np
import pytest

from v1lit.sweep import statistics
from v1lit.sweep.statistics import (
    bootstrap,
    compare,
    corrected_level,
    most_covered,
    student_quantile,
    student_share,
)

STUDENT = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 10: 2.2281, 29: 2.0452, 120: 1.9799}
"""97.5 % points as tables print them."""


@pytest.mark.parametrize("freedom", STUDENT)
def test_students_quantiles_are_those_of_the_tables(freedom: int) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(STUDENT[freedom], abs=6e-5)


def test_students_share_with_one_degree_is_cauchys() -> None:
    for t in (0.0, 0.3, 1.0, 50.0):
        assert student_share(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi)


def enumerated(values: list[float], tail: Fraction) -> tuple[float, float]:
    """The interval by going through every draw in order, with exact shares."""
    means = sorted(mean(draw) for draw in product(values, repeat=len(values)))
    beyond = math.ceil(tail * len(means)) - 1  # draws that may lie below
    return means[beyond], means[-1 - beyond]


@pytest.mark.parametrize("values", [[1.0, 2.0, 6.0], [-0.5, 0.25, 0.25], [3.0, -1.0, 4.0, 1.5]])
@pytest.mark.parametrize("level", [Fraction(1, 2), Fraction(8, 10), Fraction(9, 10), Fraction(95, 100)])
def test_an_interval_of_few_seeds_is_that_of_all_their_draws(values: list[float], level: Fraction) -> None:
    assert bootstrap(values, float(level)) == pytest.approx(enumerated(values, (1 - level) / 2))


def test_three_seeds_at_95_percent_give_their_range_and_at_90_percent_less() -> None:
    """One draw of 27 (3.7 %) is three times the smallest: more than 2.5 % and less than 5 %."""
    assert bootstrap([1.0, 2.0, 6.0], 0.95) == (1.0, 6.0)
    assert bootstrap([1.0, 2.0, 6.0], 0.90) == pytest.approx((4 / 3, 14 / 3))


def test_the_interval_of_many_seeds_is_near_the_normal_one_and_the_same_each_time() -> None:
    values = np.random.default_rng(7).normal(2.0, 3.0, size=200).tolist()
    low, high = bootstrap(values, 0.95)
    half = 1.96 * float(np.std(values)) / math.sqrt(200)
    assert (low, high) == pytest.approx((mean(values) - half, mean(values) + half), abs=0.05)
    assert bootstrap(values, 0.95) == (low, high)


def test_draws_and_counting_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.1, 0.4, -0.3, 0.9, 0.2, 0.65, 0.05, -0.1]
    counted = bootstrap(values, 0.9)
    monkeypatch.setattr(statistics, "EXHAUSTIVE", 0)
    assert bootstrap(values, 0.9) == pytest.approx(counted, abs=0.02)


def test_an_interval_turned_around_is_the_interval_of_the_differences_turned_around() -> None:
    values = [0.3, -1.0, 2.0, 0.7]
    for level in (0.5, 1 - 2 / 256, 0.99):
        low, high = bootstrap(values, level)
        assert bootstrap([-value for value in values], level) == pytest.approx((-high, -low))


def test_a_comparison_is_that_of_hand() -> None:
    """Differences 1, 2, 6: mean 3, deviation sqrt(7), Student's half 4.3027 x sqrt(7 / 3)."""
    found = compare([1.0, 2.0, 6.0], 0.95)
    half = 4.302653 * math.sqrt(7 / 3)
    assert (found.pairs, found.mean, found.deviation) == (3, 3.0, pytest.approx(math.sqrt(7)))
    assert (found.low, found.high) == (1.0, 6.0)
    assert (found.t_low, found.t_high) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    assert not found.clear, "the bootstrap leaves out zero, and Student's interval does not"
    assert compare([1.0, 1.1, 0.9], 0.95).clear


def test_a_seed_without_a_difference_is_left_out_and_one_alone_has_no_interval() -> None:
    assert compare([1.0, math.nan, 3.0], 0.9).pairs == 2
    alone = compare([math.nan, 0.25], 0.9)
    assert (alone.pairs, alone.mean) == (1, 0.25)
    assert math.isnan(alone.low)
    assert math.isnan(alone.t_high)
    assert not alone.clear
    assert compare([], 0.9).pairs == 0


def test_bonferroni_shares_the_error_out() -> None:
    assert corrected_level(0.95, 10) == pytest.approx(0.995)
    assert corrected_level(0.95, 0) == 0.95


def test_the_range_of_n_differences_has_their_median_in_it_as_often_as_is_said() -> None:
    """It misses it where all signs are the same: 2 of the 2**n."""
    for seeds in (1, 2, 3, 5):
        signs = list(product((-1, 1), repeat=seeds))
        inside = sum(min(draw) < 0 < max(draw) for draw in signs) / len(signs)
        assert most_covered(seeds) == inside
    assert most_covered(0) == 0.0
