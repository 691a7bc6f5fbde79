"""How often numbers and names occur, and where the extremes are, in memory that does not grow with them."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_NAMES = 1_000
"""Different names that are counted one by one; what else comes is counted together."""
LONGEST_NAME = 60
"""Characters of a name that are kept."""
EXTREMES = 4
"""Places that are kept at either end."""
STEPS = (1, 2, 5)
"""Widths of bins are one of these times a power of ten."""


class Counts(Counter[int]):
    """How often each whole number occurs; `update` adds those of another."""

    @property
    def sum(self) -> int:
        """All numbers added up."""
        return sum(value * count for value, count in self.items())

    @property
    def mean(self) -> float:
        """Their mean; nan where there are none."""
        return self.sum / self.total() if self else float("nan")

    def quantile(self, share: float) -> int:
        """The smallest number that at least this share of all do not exceed; 0 where there are none."""
        wanted, seen, value = share * self.total(), 0, 0
        for value in sorted(self):
            seen += self[value]
            if seen >= wanted:
                break
        return value

    def even_edges(self, most: int) -> list[int]:
        """Edges of at most `most` bins of equal width, a round number, that hold all numbers."""
        if not self:
            return []
        low, high, power = min(self), max(self), 1
        while True:
            for step in (step * power for step in STEPS):
                first = low // step * step
                if (high - first) // step < most:
                    return list(range(first, high + step + 1, step))
            power *= 10

    def in_bins(self, edges: Sequence[int]) -> list[int]:
        """How many numbers are in every bin, its lower edge included, its upper one not."""
        bins = [0] * max(0, len(edges) - 1)
        for value, count in self.items():
            bins[bisect_right(edges, value) - 1] += count
        return bins


@dataclass
class Names:
    """How often each name occurs, of which there may be any number, and whatever they hold."""

    counts: Counter[str] = field(default_factory=Counter)
    others: int = 0
    """Of names that came when `MOST_NAMES` were there already."""

    def note(self, name: str, count: int = 1) -> None:
        """Count a name, as `printable` has it."""
        name = printable(name)
        if name in self.counts or len(self.counts) < MOST_NAMES:
            self.counts[name] += count
        else:
            self.others += count

    def update(self, other: Names) -> None:
        """Add those of another."""
        for name, count in other.counts.items():
            self.note(name, count)
        self.others += other.others

    def most_common(self, most: int) -> tuple[list[tuple[str, int]], int]:
        """The most frequent names with their counts, and how often all the others occur."""
        first = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:most]
        return first, self.counts.total() + self.others - sum(count for _, count in first)


def printable(text: str, longest: int = LONGEST_NAME) -> str:
    """Somebody's text in one line of at most `longest` characters, nothing in it steering a terminal."""
    seen = "".join(letter if letter.isprintable() else "\ufffd" for letter in text[: longest + 1])
    return seen if len(seen) <= longest else f"{seen[: longest - 1]}…"


@dataclass(frozen=True)
class Place:
    """An example, and the value for which it was noted."""

    value: float
    shard: str
    """Location of its shard."""
    index: int
    """Index in its shard."""
    id: str
    region: str = ""
    """The name of the region that has the value, where it is not the example's."""


@dataclass
class Extremes:
    """The places with the smallest and the largest values; of equal ones those that came first."""

    smallest: list[Place] = field(default_factory=list)
    largest: list[Place] = field(default_factory=list)

    def note(self, place: Place) -> None:
        """Keep a place if it is one of them."""
        if len(self.smallest) < EXTREMES or place.value < self.smallest[-1].value:
            self.smallest = sorted([*self.smallest, place], key=lambda one: one.value)[:EXTREMES]
        if len(self.largest) < EXTREMES or place.value > self.largest[-1].value:
            self.largest = sorted([*self.largest, place], key=lambda one: -one.value)[:EXTREMES]

    def update(self, other: Extremes) -> None:
        """Add those of another, whose places come later."""
        self.smallest = sorted([*self.smallest, *other.smallest], key=lambda one: one.value)[:EXTREMES]
        self.largest = sorted([*self.largest, *other.largest], key=lambda one: -one.value)[:EXTREMES]
