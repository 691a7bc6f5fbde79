"""What is left of an epoch when it is divided anew, such as over another number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from v1lit.data.sampling.source import IntArray


class MicroBatchState(NamedTuple):
    """How far the m-th micro-batch of every step has come; of M it reads the indices m, m + M, m + 2M, ..."""

    read: int = 0
    """How many of them it has read."""
    waiting: tuple[int, ...] = ()
    """Indices that were read, but are in no row yet, in the order of reading."""


@dataclass(frozen=True)
class Remaining:
    """The remaining sequence of an epoch: some positions one by one, then all from one position on."""

    head: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Positions `[head]`, ascending."""
    tail: int = 0
    """The position from which on nothing has been read."""

    def positions(self, indices: IntArray) -> IntArray:
        """The position at every index of the remaining sequence."""
        if not len(self.head):
            return indices + self.tail
        inside = np.minimum(indices, len(self.head) - 1)
        behind = indices - len(self.head) + self.tail
        positions: IntArray = np.where(indices < len(self.head), self.head[inside], behind)
        return positions

    def length(self, positions: int) -> int:
        """How many of an epoch's `positions` remain."""
        return len(self.head) + max(0, positions - self.tail)

    def after(self, states: Sequence[MicroBatchState], positions: int | None) -> Remaining:
        """What remains when all micro-batches of an optimizer step have come as far as they say.

        positions: of the epoch, None where that is not known: micro-batches that have come less far than
        others would have read on to its end, and no further.
        """
        count, furthest = len(states), max(state.read for state in states)
        unread = [
            np.arange(state.read, furthest, dtype=np.int64) * count + micro_batch
            for micro_batch, state in enumerate(states)
        ]
        waiting = [np.array(state.waiting, dtype=np.int64) for state in states]
        end = furthest * count
        untouched = np.arange(end, len(self.head), dtype=np.int64)
        left = np.sort(np.concatenate([*unread, *waiting, untouched]))
        if positions is not None:
            left = left[left < self.length(positions)]
        return Remaining(self.positions(left), self.tail + max(0, end - len(self.head)))
