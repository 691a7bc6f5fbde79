"""Means of paired differences, with intervals that a few pairs can carry.

The bootstrap is Efron's (1979): the differences are drawn again with replacement, and the interval lies
between percentiles of the means of the draws. Up to `EXHAUSTIVE` pairs all draws are counted
instead of some being drawn, so that the same differences always have the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

EXHAUSTIVE = 8
"""Pairs up to which every draw is counted: 6,435 multisets of 8."""
DRAWS = 20_000
"""Draws for more pairs, from a generator that always begins the same."""


@dataclass(frozen=True)
class Comparison:
    """Of a setting with its baseline, by differences of the same seeds."""

    pairs: int
    """Of which both have a value."""
    mean: float
    deviation: float
    """Of the differences, with n - 1; NaN for fewer than two."""
    low: float
    high: float
    """Bootstrap interval; NaN for fewer than two pairs."""
    t_low: float
    t_high: float
    """Student's interval, which takes differences to be normally distributed."""

    @property
    def clear(self) -> bool:
        """Whether zero is in neither interval."""
        return (self.low > 0 and self.t_low > 0) or (self.high < 0 and self.t_high < 0)


def compare(differences: Sequence[float], level: float) -> Comparison:
    """The mean of paired differences with its intervals at this level, such as 0.95."""
    found = [difference for difference in differences if not math.isnan(difference)]
    pairs, mean = len(found), float(np.mean(found)) if found else math.nan
    if pairs < 2:
        return Comparison(pairs, mean, *[math.nan] * 5)
    deviation = float(np.std(found, ddof=1))
    half = student_quantile((1 + level) / 2, pairs - 1) * deviation / math.sqrt(pairs)
    return Comparison(pairs, mean, deviation, *bootstrap(found, level), mean - half, mean + half)


def bootstrap(values: Sequence[float], level: float) -> tuple[float, float]:
    """The percentile interval of the mean: of the draws, at most `(1 - level) / 2` lie beyond either end."""
    means, weights = _draws(values)
    order = np.argsort(means, kind="stable")
    means, weights = means[order], weights[order] / weights.sum()
    tail = (1 - level) / 2 - 1e-12  # a share that is short of it by rounding reaches it
    low = int(np.searchsorted(np.cumsum(weights), tail))
    high = int(np.searchsorted(np.cumsum(weights[::-1]), tail))
    return float(means[low]), float(means[::-1][high])


def _draws(values: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of draws with replacement, as many as there are values, and how often each comes."""
    numbers, count = np.asarray(values, float), len(values)
    if count > EXHAUSTIVE:
        picks = np.random.default_rng(0).integers(count, size=(DRAWS, count))
        return numbers[picks].mean(1), np.ones(DRAWS)
    multisets = list(combinations_with_replacement(range(count), count))
    ways = [math.factorial(count) / _product(multiset) for multiset in multisets]
    return numbers[np.asarray(multisets)].mean(1), np.asarray(ways)


def _product(multiset: Sequence[int]) -> int:
    """Of the factorials of how often each number comes."""
    return math.prod(math.factorial(multiset.count(number)) for number in set(multiset))


def corrected_level(level: float, comparisons: int) -> float:
    """The level of each of several intervals such that all are right at once at `level`, by Bonferroni.

    It holds however the comparisons depend on each other; those with one baseline do.
    """
    return 1 - (1 - level) / max(1, comparisons)


def most_covered(pairs: int) -> float:
    """How often the range from the smallest to the largest of n differences has their median in it, at most.

    That range is the widest percentile interval there is: 75 % for 3 pairs, 94 % for 5, 99.8 % for 10.
    """
    return 1 - 2.0 ** (1 - pairs) if pairs else 0.0


def student_quantile(share: float, freedom: int) -> float:
    """The t below which this share (over a half) of Student's distribution lies, by bisection."""
    low, high = 0.0, 1.0
    while student_share(high, freedom) < share:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if student_share(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def student_share(t: float, freedom: int) -> float:
    """The share of Student's distribution below t >= 0, in closed form for whole degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = 1.0, 0.0
    odd = freedom % 2
    for step in range(freedom // 2):
        total += term
        term *= cosine**2 * (2 * step + 1 + odd) / (2 * step + 2 + odd)
    inside = 2 / math.pi * (angle + sine * cosine * total) if odd else sine * total
    return 0.5 + inside / 2
