"""`ExampleRef`: which example is meant, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExampleRef:
    """One example: its index in the epoch, and where it lies."""

    epoch_index: int
    source: int
    shard: int
    index: int
    """Index in its shard."""
    epoch: int = 0
