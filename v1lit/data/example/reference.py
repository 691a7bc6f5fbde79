"""`Place`: which example is meant, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """One example: its position in the epoch, and where it lies."""

    position: int
    source: int
    shard: int
    number: int
    """Within its shard."""
    epoch: int = 0
