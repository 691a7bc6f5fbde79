"""What is left of an epoch when it is divided anew, such as over another number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from v1lit.data.sampling.source import Numbers


class SlotState(NamedTuple):
    """How far a slot has come; slot s of n reads the indices s, s + n, s + 2n, ... of what remains."""

    read: int = 0
    """How many of them it has read."""
    waiting: tuple[int, ...] = ()
    """Indices that were read, but are in no row yet, in the order of reading."""


@dataclass(frozen=True)
class Rest:
    """The remaining sequence of an epoch: some positions one by one, then all from one position on."""

    head: Numbers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Positions `[head]`, ascending."""
    tail: int = 0
    """The position from which on nothing has been read."""

    def positions(self, indices: Numbers) -> Numbers:
        """The position at every index of the remaining sequence."""
        if not len(self.head):
            return indices + self.tail
        inside = np.minimum(indices, len(self.head) - 1)
        behind = indices - len(self.head) + self.tail
        positions: Numbers = np.where(indices < len(self.head), self.head[inside], behind)
        return positions

    def length(self, positions: int) -> int:
        """How many of an epoch's `positions` remain."""
        return len(self.head) + max(0, positions - self.tail)

    def after(self, slots: Sequence[SlotState], positions: int | None) -> Rest:
        """What remains when all slots of an optimizer step have come as far as they say.

        positions: of the epoch, None where that is not known: slots that have come less far than others
        would have read on to its end, and no further.
        """
        count, furthest = len(slots), max(slot.read for slot in slots)
        unread = [
            np.arange(slot.read, furthest, dtype=np.int64) * count + number
            for number, slot in enumerate(slots)
        ]
        waiting = [np.array(slot.waiting, dtype=np.int64) for slot in slots]
        end = furthest * count
        untouched = np.arange(end, len(self.head), dtype=np.int64)
        left = np.sort(np.concatenate([*unread, *waiting, untouched]))
        if positions is not None:
            left = left[left < self.length(positions)]
        return Rest(self.positions(left), self.tail + max(0, end - len(self.head)))
