"""Why rows or examples could not be used, in few lines: many reasons differ in a number or a name only."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

ReasonCounts = list[tuple[str, int]]
"""Reasons, each with how many rows or examples it is about."""

_DETAILS = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|<[^<>]*>|\[[^\[\]]*\]|\d+(?:\.\d+)?""")


def most_frequent(reasons: Iterable[str], most: int = 3) -> ReasonCounts:
    """The first reason of each of the `most` largest kinds, and how many the kind has; largest first.

    Reasons that differ only in numbers, lists, names in `<...>` and words in quotes are of one kind.
    """
    return most_frequent_of(((reason, 1) for reason in reasons), most)


def most_frequent_of(counted: Iterable[tuple[str, int]], most: int = 3) -> ReasonCounts:
    """The same of reasons that were counted before."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for reason, count in counted:
        kind = _DETAILS.sub("…", reason)
        first.setdefault(kind, reason)
        counts[kind] += count
    return [(first[kind], count) for kind, count in counts.most_common(most)]


def in_words(counted: Iterable[tuple[str, int]]) -> str:
    """Counted reasons as a text: `3 x the row has no id; 1 x ...`."""
    return "; ".join(f"{count} x {reason}" for reason, count in counted)


def listed_in(path: Path) -> Iterator[str]:
    """The reasons in a file of one JSON object per line, in their order; none where it is gone."""
    with suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["reason"]
