"""The global sequence: which example of which source stands at a position of an epoch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from v1lit.data.sampling.source import NOTHING, IntArray, SourceOrder, even_share, groups

BLOCK = 1_000
"""Examples within which sources are mixed at random; over every block their shares are exact."""


@dataclass(frozen=True)
class References:
    """Examples at some positions, `[positions]` each; all `NOTHING` where a position is empty."""

    sources: IntArray
    shards: IntArray
    numbers: IntArray
    """Number of the example within its shard."""

    @property
    def present(self) -> np.ndarray:
        """bool `[positions]`: whether there is an example."""
        present: np.ndarray = self.shards >= 0
        return present


def draws_per_epoch(
    sizes: Sequence[int], weights: Sequence[float | None], limits: Sequence[int | None]
) -> list[int]:
    """Examples that every source gives to an epoch.

    Without weights all that it has, at most its limit. With weights the same total is shared out in
    proportion to them (largest remainders), and then limited: a source that is asked for more than it has is
    read again in another order, one that is asked for less gives the rest to the next epochs.

    Raises ValueError where only some sources have a weight, or weights are not positive.
    """
    most = [size if limit is None else min(size, limit) for size, limit in zip(sizes, limits, strict=True)]
    given = [weight for weight in weights if weight is not None]
    if not given:
        return most
    if len(given) < len(weights):
        without = [number for number, weight in enumerate(weights) if weight is None]
        raise ValueError(
            f"data.source.mixture: {len(given)} of {len(weights)} sources have a weight, number "
            f"{', '.join(map(str, without))} has none; give all of them one, or none"
        )
    if min(given) <= 0 or not np.isfinite(given).all():
        raise ValueError(f"data.source.mixture: weights must be positive numbers, given {given}")
    exact = np.array(given, dtype=np.float64) * (sum(most) / sum(given))
    shares = np.floor(exact).astype(np.int64)
    missing = sum(most) - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1
    if (shares == 0).any():
        raise ValueError(
            f"data.source.mixture: a weight of {given[int(np.argmin(shares))]:g} among {given} is less than "
            f"one of the {sum(most)} examples of an epoch; leave that source out, or give it more"
        )
    return [
        int(share) if limit is None else min(int(share), limit)
        for share, limit in zip(shares, limits, strict=True)
    ]


class GlobalSequence:
    """All examples of an epoch in the order in which the ranks read them together.

    Position i belongs to lane i % lanes. Every lane draws from its own part of every source, `draws` shared
    out over the lanes; in each block of about a thousand positions the sources have their exact shares and
    come in random order. A source is drawn from without end: where one mixture epoch stops in it, the next
    one goes on, so over its own epochs each of its examples comes exactly once.

    `find` needs neither the examples before nor any state. Raises ValueError for a source with fewer examples
    than lanes, and for several lanes or sources where shards are not counted (no index).
    """

    def __init__(self, orders: Sequence[SourceOrder], draws: Sequence[int | None], seed: int) -> None:
        """Args:
        orders: of the sources, all with the same number of lanes.
        draws: examples that each source gives to an epoch; None where it is not counted.
        seed: of the mixing.
        """
        self.orders, self.draws, self.seed = list(orders), list(draws), seed
        self.lanes = orders[0].lanes
        for number, (order, drawn) in enumerate(zip(orders, draws, strict=True)):
            if drawn is None and (self.lanes > 1 or len(orders) > 1):
                raise ValueError(
                    f"source {number} has no index, so its examples are not counted, which "
                    f"{'data.stream.lanes > 1' if self.lanes > 1 else 'a mixture'} needs; make one with "
                    "`v1lit data index`"
                )
            if drawn and order.size is not None and order.size < self.lanes:
                raise ValueError(
                    f"source {number} has {order.size} examples, fewer than the {self.lanes} of "
                    f"data.stream.lanes; set data.stream.lanes={order.size} or less"
                )
        # The first lane has the longest part of every source.
        self._longest_lane = sum(self._lane_draws(0))
        self._lanes: dict[int, tuple[IntArray, IntArray]] = {}
        self._blocks: OrderedDict[tuple[int, int, int], tuple[IntArray, IntArray]] = OrderedDict()

    @property
    def examples(self) -> int | None:
        """Examples of an epoch; None where they are not counted."""
        return None if None in self.draws else sum(drawn for drawn in self.draws if drawn is not None)

    @property
    def positions(self) -> int | None:
        """Positions of an epoch: as the examples, and up to one per lane and source that is empty."""
        if self.examples is None:
            order = self.orders[0]
            return order.size
        return self.lanes * self._longest_lane

    def find(self, epoch: int, positions: IntArray) -> References:
        """The examples at `positions` `[n]` of an epoch, in any order; `NOTHING` behind a lane's end."""
        found = References(*(np.full(len(positions), NOTHING, dtype=np.int64) for _ in range(3)))
        for lane, here in groups(positions % self.lanes):
            self._find_in_lane(epoch, lane, positions[here] // self.lanes, here, found)
        return found

    def _find_in_lane(
        self, epoch: int, lane: int, offsets: IntArray, here: IntArray, found: References
    ) -> None:
        sources, draws = self._drawn(epoch, lane, offsets)
        for source in np.unique(sources[sources >= 0]):
            order, chosen = self.orders[source], sources == source
            total = self.draws[source]
            size = order.lane_size(lane)
            if total is None or size is None:
                epochs, within = np.full(int(chosen.sum()), epoch), draws[chosen]
            else:
                endless = epoch * even_share(total, self.lanes, lane)[1] + draws[chosen]
                epochs, within = endless // size, endless % size
            for one in np.unique(epochs):
                which = here[chosen][epochs == one]
                shards, numbers = order.find(int(one), lane, within[epochs == one])
                found.shards[which], found.numbers[which] = shards, numbers
                found.sources[which] = np.where(shards >= 0, source, NOTHING)

    def _drawn(self, epoch: int, lane: int, offsets: IntArray) -> tuple[IntArray, IntArray]:
        """Source of every offset of a lane, and which of the lane's draws from that source it is."""
        if len(self.orders) == 1:
            drawn = self.draws[0]
            behind = np.inf if drawn is None else even_share(drawn, self.lanes, lane)[1]
            return np.where(offsets < behind, 0, NOTHING), offsets
        draws, starts = self._lane(lane)
        total, blocks = int(starts[-1]), len(starts) - 1
        numbers = np.searchsorted(starts, offsets, side="right") - 1
        sources, which = np.full(len(offsets), NOTHING), np.zeros(len(offsets), dtype=np.int64)
        for block in np.unique(numbers[offsets < total]):
            here = numbers == block
            mixed, first = self._block(epoch, lane, int(block), blocks, draws)
            sources[here] = mixed[offsets[here] - starts[block]]
            which[here] = first[offsets[here] - starts[block]]
        return sources, which

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
        self, epoch: int, lane: int, block: int, blocks: int, draws: IntArray
    ) -> tuple[IntArray, IntArray]:
        """Sources in their mixed order within a block, and which draw from its source each one is."""
        key = (epoch, lane, block)
        if key not in self._blocks:
            first, behind = draws * block // blocks, draws * (block + 1) // blocks
            random = np.random.default_rng([self.seed, epoch, lane, block])
            mixed = random.permutation(np.repeat(np.arange(len(draws)), behind - first))
            which = np.empty_like(mixed)
            for source in range(len(draws)):
                which[mixed == source] = np.arange(first[source], behind[source])
            self._blocks[key] = mixed, which
            if len(self._blocks) > 2 * len(self._lanes) + 2:
                self._blocks.popitem(last=False)
        return self._blocks[key]

    def _lane_draws(self, lane: int) -> list[int]:
        return [even_share(drawn, self.lanes, lane)[1] for drawn in self.draws if drawn is not None]
