"""Places in a stream: where a reader begins, and how far it has come."""

from __future__ import annotations

from typing import NamedTuple


class FileStart(NamedTuple):
    """A file of a stream, and where reading it begins."""

    file: int
    """Index of the file in the stream, or among those of one reader."""
    sample: int = 0
    """Index in the file of the first sample to read."""


class ReaderState(NamedTuple):
    """How far a reader has come. Its examples are counted in the order in which it puts them into rows."""

    file: int = 0
    """Which of its files to open to resume."""
    sample: int = 0
    """Index in that file of the first sample to read."""
    first: int = 0
    """Index that the example of this sample has for the reader."""
    read: int = 0
    """Examples that have been looked at, from the first of the epoch on."""
    waiting: tuple[int, ...] = ()
    """Indices of those of them that are in no row yet."""


class RankState(NamedTuple):
    """How far a rank has come."""

    next: int
    """Which of its readers makes the next batch."""
    readers: tuple[ReaderState, ...]
