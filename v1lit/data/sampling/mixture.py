"""The global sequence: which example of which source stands at an index of an epoch.

Two sources, of 3 and 4 examples, of which an epoch draws 4 and 2, in one lane:

    epoch           0  0  0  0  0  0    1  1  1  1  1  1
    epoch index     0  1  2  3  4  5    0  1  2  3  4  5
    source          0  1  0  1  0  0    1  0  0  0  1  0      mixed at random, in blocks
    draw            0  0  1  1  2  3    0  0  1  2  1  3      counted per source, in the epoch
    endless         0  0  1  1  2  3    2  4  5  6  3  7      epoch x draws of the source + draw
    source epoch    0  0  0  0  0  1    0  1  1  2  0  2      endless // size of the source
    offset          0  0  1  1  2  0    2  1  2  0  3  1      endless % size: `SourceOrder.find`

So a source continues where the last epoch stopped, and has an order of its own each time it begins anew.
With several lanes, the epoch index i is offset i // lanes of lane i % lanes, which has its share of the draws
and its part of every source.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from v1lit.data.sampling.shuffle import NOTHING, IntArray, SourceOrder, even_share, groups

BLOCK = 1_000
"""Examples within which sources are mixed at random; over every block their shares are exact."""


@dataclass(frozen=True)
class References:
    """Examples at some indices of an epoch, `[n]` each; all `NOTHING` where an index is empty."""

    sources: IntArray
    shards: IntArray
    indices: IntArray
    """Index of the example in its shard."""

    @property
    def present(self) -> np.ndarray:
        """Whether there is an example, bool `[n]`."""
        present: np.ndarray = self.shards >= 0
        return present


def draws_per_epoch(
    sizes: Sequence[int], weights: Sequence[float | None], limits: Sequence[int | None]
) -> list[int]:
    """Examples of every source in an epoch.

    Without weights they are all that it has, at most its limit. With weights the same total is shared out in
    proportion to them (largest remainders), and then limited: a source that is asked for more than it has is
    read again in another order, one that is asked for less has others in the next epochs.

    Raises ValueError where only some sources have a weight, or weights are not positive.
    """
    most = [size if limit is None else min(size, limit) for size, limit in zip(sizes, limits, strict=True)]
    weighted = [weight for weight in weights if weight is not None]
    if not weighted:
        return most
    if len(weighted) < len(weights):
        without = [source for source, weight in enumerate(weights) if weight is None]
        raise ValueError(
            f"data.source.mixture: {len(weighted)} of {len(weights)} sources have a weight, source "
            f"{', '.join(map(str, without))} has none; give all of them one, or none"
        )
    if min(weighted) <= 0 or not np.isfinite(weighted).all():
        raise ValueError(f"data.source.mixture: weights must be positive numbers, given {weighted}")
    exact = np.array(weighted, dtype=np.float64) * (sum(most) / sum(weighted))
    shares = np.floor(exact).astype(np.int64)
    missing = sum(most) - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1
    if (shares == 0).any():
        raise ValueError(
            f"data.source.mixture: a weight of {weighted[int(np.argmin(shares))]:g} among {weighted} is less "
            f"than one of the {sum(most)} examples of an epoch; leave that source out, or give it more"
        )
    return [
        int(share) if limit is None else min(int(share), limit)
        for share, limit in zip(shares, limits, strict=True)
    ]


class GlobalSequence:
    """All examples of an epoch in the order in which the ranks read them together.

    Epoch index i belongs to lane i % lanes. Every lane draws from its own part of every source, `draws`
    shared out over the lanes; in each block of about a thousand indices the sources have their exact shares
    and come in random order. A source is drawn from without end: where one epoch stops in it, the next one
    resumes, so over its own epochs each of its examples comes exactly once. `find` needs neither the examples
    before nor any state.

    Args:
        orders: those of the sources, all with the same number of lanes.
        draws: examples of each source in an epoch; None where it is not counted.
        seed: decides how sources are mixed.

    Raises ValueError for a source with fewer examples than lanes, and for several lanes or sources where
    shards are not counted (no index).
    """

    def __init__(self, orders: Sequence[SourceOrder], draws: Sequence[int | None], seed: int) -> None:
        self.orders, self.draws, self.seed = list(orders), list(draws), seed
        self.lanes = orders[0].lanes
        for source, (order, total) in enumerate(zip(orders, draws, strict=True)):
            if total is None and (self.lanes > 1 or len(orders) > 1):
                raise ValueError(
                    f"source {source} has no index, so its examples are not counted, which "
                    f"{'data.stream.lanes > 1' if self.lanes > 1 else 'a mixture'} needs; make one with "
                    "`v1lit data index`"
                )
            if total and order.size is not None and order.size < self.lanes:
                raise ValueError(
                    f"source {source} has {order.size} examples, fewer than the {self.lanes} of "
                    f"data.stream.lanes; set data.stream.lanes={order.size} or less"
                )
        # The first lane has the longest part of every source.
        self._longest_lane = sum(self._lane_draws(0))
        self._lanes: dict[int, tuple[IntArray, IntArray]] = {}
        self._blocks: OrderedDict[tuple[int, int, int], tuple[IntArray, IntArray]] = OrderedDict()

    @property
    def examples(self) -> int | None:
        """Examples of an epoch; None where they are not counted."""
        return None if None in self.draws else sum(total for total in self.draws if total is not None)

    @property
    def length(self) -> int | None:
        """Indices of an epoch: as many as examples, and up to one per lane and source that is empty.

        None while the examples are not counted.
        """
        if self.examples is None:
            return self.orders[0].size
        return self.lanes * self._longest_lane

    def find(self, epoch: int, epoch_indices: IntArray) -> References:
        """The examples at some indices `[n]` of an epoch, in any order; `NOTHING` behind a lane's end."""
        refs = References(*(np.full(len(epoch_indices), NOTHING, dtype=np.int64) for _ in range(3)))
        for lane, where in groups(epoch_indices % self.lanes):
            sources, draws = self._draws_at(epoch, lane, epoch_indices[where] // self.lanes)
            for source in np.unique(sources[sources >= 0]).tolist():
                chosen = sources == source
                source_epochs, offsets = self._endless(source, epoch, lane, draws[chosen])
                for source_epoch, same in groups(source_epochs):
                    at = where[chosen][same]
                    shards, indices = self.orders[source].find(source_epoch, lane, offsets[same])
                    refs.shards[at], refs.indices[at] = shards, indices
                    refs.sources[at] = np.where(shards >= 0, source, NOTHING)
        return refs

    def _draws_at(self, epoch: int, lane: int, offsets: IntArray) -> tuple[IntArray, IntArray]:
        """Source of every offset of a lane, and which of the lane's draws from that source it is."""
        if len(self.orders) == 1:
            total = self.draws[0]
            end = np.inf if total is None else even_share(total, self.lanes, lane)[1]
            return np.where(offsets < end, 0, NOTHING), offsets
        lane_draws, starts = self._lane(lane)
        blocks = np.searchsorted(starts, offsets, side="right") - 1
        sources, draws = np.full(len(offsets), NOTHING), np.zeros(len(offsets), dtype=np.int64)
        for block in np.unique(blocks[offsets < starts[-1]]).tolist():
            where = blocks == block
            mixed, draws_of_mixed = self._block(epoch, lane, block, len(starts) - 1, lane_draws)
            sources[where] = mixed[offsets[where] - starts[block]]
            draws[where] = draws_of_mixed[offsets[where] - starts[block]]
        return sources, draws

    def _endless(self, source: int, epoch: int, lane: int, draws: IntArray) -> tuple[IntArray, IntArray]:
        """Epoch of the source itself, and offset in its lane, of some draws of an epoch of the mixture."""
        total, size = self.draws[source], self.orders[source].lane_size(lane)
        if total is None or size is None:
            return np.full(len(draws), epoch), draws
        endless = epoch * even_share(total, self.lanes, lane)[1] + draws
        return endless // size, endless % size

    def _lane(self, lane: int) -> tuple[IntArray, IntArray]:
        """Draws of every source in a lane `[sources]`, and the offset at which every block begins.

        Block b of B holds the draws of a source from floor(draws * b / B) on, so its share is exact.
        """
        if lane not in self._lanes:
            draws = np.array(self._lane_draws(lane))
            blocks = max(1, int(draws.sum()) // BLOCK)
            starts = (draws[:, None] * np.arange(blocks + 1) // blocks).sum(0)
            self._lanes[lane] = draws, starts
        return self._lanes[lane]

    def _block(
        self, epoch: int, lane: int, block: int, blocks: int, lane_draws: IntArray
    ) -> tuple[IntArray, IntArray]:
        """Sources in their mixed order within a block, and which draw from its source each one is."""
        key = (epoch, lane, block)
        if key not in self._blocks:
            first, end = lane_draws * block // blocks, lane_draws * (block + 1) // blocks
            random = np.random.default_rng([self.seed, epoch, lane, block])
            mixed = random.permutation(np.repeat(np.arange(len(lane_draws)), end - first))
            draws = np.empty_like(mixed)
            for source in range(len(lane_draws)):
                draws[mixed == source] = np.arange(first[source], end[source])
            self._blocks[key] = mixed, draws
            if len(self._blocks) > 2 * len(self._lanes) + 2:
                self._blocks.popitem(last=False)
        return self._blocks[key]

    def _lane_draws(self, lane: int) -> list[int]:
        return [even_share(total, self.lanes, lane)[1] for total in self.draws if total is not None]
