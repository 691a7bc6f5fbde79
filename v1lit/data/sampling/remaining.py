"""What is left of an epoch when it is divided anew, such as over another number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from v1lit.data.sampling.shuffle import IntArray


class MicroBatchState(NamedTuple):
    """How far the m-th micro-batch of every step has come; of M it reads the indices m, m + M, m + 2M, ..."""

    read: int = 0
    """How many of them it has read."""
    waiting: tuple[int, ...] = ()
    """Indices that were read, but are in no row yet, in the order of reading."""


@dataclass(frozen=True)
class Remaining:
    """The remaining sequence of an epoch: some of its indices one by one, then all from one on."""

    head: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Epoch indices `[head]`, ascending."""
    tail: int = 0
    """The epoch index from which on nothing has been read."""

    def epoch_indices(self, indices: IntArray) -> IntArray:
        """The epoch index at every index of the remaining sequence, `[n]` each."""
        if not len(self.head):
            return indices + self.tail
        in_head = np.minimum(indices, len(self.head) - 1)
        behind = indices - len(self.head) + self.tail
        epoch_indices: IntArray = np.where(indices < len(self.head), self.head[in_head], behind)
        return epoch_indices

    def length(self, epoch_length: int) -> int:
        """How many indices of an epoch of `epoch_length` remain."""
        return len(self.head) + max(0, epoch_length - self.tail)

    def after(self, states: Sequence[MicroBatchState], epoch_length: int | None) -> Remaining:
        """What remains when all micro-batches of an optimizer step have come as far as they say.

        Two of them, of which the first has read 3 indices, the second 1, and the first holds one back:

            micro-batch 0   0 (2) 4 | 6 8 ...
            micro-batch 1   1 | 3 5   7 9 ...

        The furthest has read 3, so from 2 x 3 = 6 on all remain (`tail`), and before it what waits and what
        the other has not read (`head`): 2 3 5. A micro-batch that is behind, of an epoch whose length is
        known, would have read on to its end and no further.
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
        if epoch_length is not None:
            left = left[left < self.length(epoch_length)]
        return Remaining(self.epoch_indices(left), self.tail + max(0, end - len(self.head)))
