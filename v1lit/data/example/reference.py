"""`ExampleRef`: which example is meant, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExampleRef:
    """One example: its position in the epoch, and where it lies."""

    epoch_index: int
    source: int
    shard: int
    index: int
    """Within its shard."""
    epoch: int = 0
