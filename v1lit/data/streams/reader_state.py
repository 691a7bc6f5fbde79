"""Places in a stream: where a reader begins, and how far it has come."""

from __future__ import annotations

from typing import NamedTuple


class Begin(NamedTuple):
    """A file to read: its number, and the sample from which on."""

    file: int
    sample: int = 0


class ReaderState(NamedTuple):
    """How far a reader has come. Its examples are numbered in the order in which it gives them to rows."""

    file: int = 0
    """Which of its files to open to go on,"""
    sample: int = 0
    """the sample in it from which on to read,"""
    first: int = 0
    """and the number of the first example that this gives."""
    read: int = 0
    """Examples up to this number have been looked at,"""
    waiting: tuple[int, ...] = ()
    """of which these are in no row yet."""


class RankState(NamedTuple):
    """How far a rank has come."""

    next: int
    """Which of its readers makes the next batch."""
    readers: tuple[ReaderState, ...]
