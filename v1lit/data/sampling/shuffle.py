"""The order of one source's examples: shards permuted, examples shuffled within a window."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
NOTHING = -1
"""Where there is no example: behind the end."""


def even_share(total: int, parts: int, part: int) -> tuple[int, int]:
    """Start and size of one of `parts` consecutive parts of `total`, as equal as can be."""
    size, longer = divmod(total, parts)
    return part * size + min(part, longer), size + (part < longer)


def groups(values: IntArray) -> Iterator[tuple[int, IntArray]]:
    """Every different value, ascending, and where it stands in `values`."""
    if len(values) and values.min() == values.max():
        yield int(values[0]), np.arange(len(values))
        return
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.diff(values[order])) + 1
    for where in np.split(order, ends):
        if len(where):
            yield int(values[where[0]]), where


@dataclass(frozen=True)
class Shuffle:
    """How examples are mixed."""

    seed: int = 0
    on: bool = True
    """False for the order in which the shards were written."""
    window: int = 10_000
    """Examples that are permuted together, after the shards themselves were."""


class SourceOrder:
    """Where the n-th example of an epoch lies, for any n at once, as a function of seed and epoch alone.

    The epoch's permuted shards, one behind another, are cut into `lanes` equal parts, and every part into
    windows, each of which is permuted. So a lane reads few shards at a time and no example moves out of its
    window. Kept in memory: 16 bytes per shard, and 8 bytes per example of the windows in use.

    Args:
        counts: examples of every shard `[shards]`, None for all that are not known yet.
        shuffle: how they are mixed.
        lanes: parts that are read side by side.
        salt: tells sources of one seed apart.
        discover: returns the examples of a shard whose count is not known; asked in the order of reading.
    """

    def __init__(
        self,
        counts: Sequence[int | None] | IntArray,
        shuffle: Shuffle,
        *,
        lanes: int = 1,
        salt: int = 0,
        discover: Callable[[int], int] | None = None,
    ) -> None:
        self.shuffle, self.lanes, self.salt = shuffle, lanes, salt
        self._discover = discover
        # -1: unknown. Filled while reading, and kept for the next epochs.
        self.counts = np.array([-1 if count is None else count for count in counts], dtype=np.int64)
        self._size: int | None = None
        self._epochs: OrderedDict[int, _ShardOrder] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], IntArray] = OrderedDict()
        self._in_use: set[int] = set()

    @property
    def size(self) -> int | None:
        """Examples of the source; None while not all shards have been counted."""
        if self._size is None and (self.counts >= 0).all():
            self._size = int(self.counts.sum())
        return self._size

    def lane_size(self, lane: int) -> int | None:
        """Examples of a lane, in every epoch; None while not all shards have been counted."""
        return None if self.size is None else even_share(self.size, self.lanes, lane)[1]

    def find(self, epoch: int, lane: int, offsets: IntArray) -> tuple[IntArray, IntArray]:
        """Shard, and index in it, of the examples at `offsets` `[n]` of a lane; `NOTHING` behind its end."""
        order = self._shard_order(epoch)
        if order.counted < len(order.shards):
            window, last = self.shuffle.window, int(offsets.max())
            # Where an example of a window lies is known when the whole window is counted.
            self._discover_until(order, (last // window + 1) * window if self.shuffle.on else last + 1)
        start, size = even_share(order.examples, self.lanes, lane)
        inside = offsets < size
        places = start + self._shuffled(epoch, lane, np.where(inside, offsets, 0), size)
        which = np.searchsorted(order.ends[: order.counted], places, side="right")
        which = np.minimum(which, max(order.counted - 1, 0))  # of what lies behind the end
        shards = order.shards[which]
        indices = places - (order.ends[which] - self.counts[shards])
        return np.where(inside, shards, NOTHING), np.where(inside, indices, NOTHING)

    def _shuffled(self, epoch: int, lane: int, offsets: IntArray, size: int) -> IntArray:
        """Every offset of a lane moved to its place within its window."""
        length = self.shuffle.window
        if not self.shuffle.on or not size:
            return offsets
        moved = np.empty_like(offsets)
        for window, where in groups(offsets // length):
            start = window * length
            permutation = self._permutation(epoch, lane, window, min(length, size - start))
            moved[where] = start + permutation[offsets[where] - start]
        return moved

    def _permutation(self, epoch: int, lane: int, window: int, size: int) -> IntArray:
        key = (epoch, lane, window)
        if key not in self._windows:
            random = np.random.default_rng([self.shuffle.seed, self.salt, epoch, lane + 1, window])
            self._windows[key] = random.permutation(size)
            self._in_use.add(lane)
            if len(self._windows) > 2 * len(self._in_use) + 2:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]

    def _shard_order(self, epoch: int) -> _ShardOrder:
        if epoch not in self._epochs:
            shards = np.arange(len(self.counts))
            if self.shuffle.on:
                shards = np.random.default_rng([self.shuffle.seed, self.salt, epoch, 0]).permutation(shards)
            self._epochs[epoch] = _ShardOrder.begin(shards, self.counts)
            if len(self._epochs) > 3:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _discover_until(self, order: _ShardOrder, examples: int) -> None:
        """Count further shards until that many examples are known, or all."""
        while order.examples < examples and order.counted < len(order.shards):
            shard = int(order.shards[order.counted])
            if self.counts[shard] < 0:
                assert self._discover is not None
                self.counts[shard] = self._discover(shard)
            order.add(int(self.counts[shard]))


@dataclass
class _ShardOrder:
    """The permuted shards of an epoch, and where each ends, as far as they are counted."""

    shards: IntArray
    ends: IntArray
    counted: int = 0
    """Shards that are counted, from the first one on."""

    @classmethod
    def begin(cls, shards: IntArray, counts: IntArray) -> _ShardOrder:
        order = cls(shards, np.zeros(len(shards), dtype=np.int64))
        if (counts >= 0).all():
            order.ends, order.counted = np.cumsum(counts[shards]), len(shards)
        return order

    @property
    def examples(self) -> int:
        """Examples of the shards that are counted."""
        return int(self.ends[self.counted - 1]) if self.counted else 0

    def add(self, examples: int) -> None:
        self.ends[self.counted] = self.examples + examples
        self.counted += 1
