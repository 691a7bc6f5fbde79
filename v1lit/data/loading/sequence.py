"""The global sequence of examples over the shards that a configuration names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from v1lit.data.config import MixtureConfig, StreamConfig
from v1lit.data.errors import ShardError
from v1lit.data.sampling.mixture import GlobalSequence, draws_per_epoch
from v1lit.data.sampling.shuffle import Shuffle, SourceOrder
from v1lit.data.shards.catalog import Catalog
from v1lit.data.shards.examples import Examples


@dataclass
class OpenedSequence:
    """Sources, and the order in which their examples come."""

    examples: Examples
    sequence: GlobalSequence
    lost: list[ShardError] = field(default_factory=list)
    """Shards without an index that could not be counted, since this was last emptied."""

    @property
    def catalogs(self) -> list[Catalog]:
        """Of the sources, in the order of the mixture."""
        return self.examples.catalogs

    @property
    def remote(self) -> bool:
        """Whether shards come over a network."""
        return any(catalog.remote for catalog in self.catalogs)

    @property
    def indexed(self) -> bool:
        """Whether all examples are counted."""
        return all(catalog.indexed for catalog in self.catalogs)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides which example stands at which epoch index: two runs that agree in it read the same."""
        shuffle = self.sequence.orders[0].shuffle
        return {
            "data.seed": shuffle.seed,
            "data.stream.shuffle_window": shuffle.window,
            "data.stream.lanes": self.sequence.lanes,
            "the sources": [catalog.content[:16] for catalog in self.catalogs],
            "NumPy's random order": random_order(),
            "examples of each per epoch": [-1 if drawn is None else drawn for drawn in self.sequence.draws],
        }


def open_sequence(
    sources: Sequence[MixtureConfig],
    config: StreamConfig,
    seed: int = 0,
    *,
    shuffle: bool = True,
    count: bool = False,
) -> OpenedSequence:
    """Open the shards of all sources, as far as their indices go.

    Args:
        sources: locations, with weights and limits.
        config: shuffle window, lanes, cache and retries.
        seed: of the order.
        shuffle: False for the order in which the shards were written.
        count: count the examples of shards without an index now, which reads their headers.

    Raises ValueError for no shards, no examples, and a mixture or lanes that these shards cannot have.
    """
    examples, lost = Examples([Catalog(source.shards, config) for source in sources]), list[ShardError]()
    orders = []
    for source_index, catalog in enumerate(examples.catalogs):
        discover, counts = partial(_discover, examples, lost, source_index), catalog.counts
        if count:
            counted = [discover(shard) if size < 0 else int(size) for shard, size in enumerate(counts)]
            counts = np.array(counted, dtype=np.int64)
        orders.append(
            SourceOrder(
                counts,
                Shuffle(seed, shuffle, config.shuffle_window),
                lanes=config.lanes,
                salt=source_index,
                discover=discover,
            )
        )
        if orders[-1].size == 0:
            why = f"; the first problem: {lost[0]}" if lost else ""
            raise ValueError(f"{catalog.location}: the shards hold no examples{why}")
    return OpenedSequence(examples, GlobalSequence(orders, _draws(sources, orders), seed), lost)


def _draws(sources: Sequence[MixtureConfig], orders: Sequence[SourceOrder]) -> list[int | None]:
    sizes = [order.size for order in orders]
    if None in sizes:
        without = sources[sizes.index(None)]
        if len(sources) > 1 or without.weight is not None or without.limit is not None:
            what = "a mixture" if len(sources) > 1 else "a weight or a limit"
            raise ValueError(
                f"data.source.mixture: {without.shards} has no index, so its examples are not counted, which "
                f"{what} needs; make one with `v1lit data index`"
            )
        return [None]
    counted = [size for size in sizes if size is not None]
    weights, limits = [source.weight for source in sources], [source.limit for source in sources]
    return list(draws_per_epoch(counted, weights, limits))


def _discover(examples: Examples, lost: list[ShardError], source: int, shard: int) -> int:
    """Count the examples of a shard without an index; none of one that is damaged."""
    try:
        return len(examples.get(source, shard))
    except ShardError as error:
        if error.kind == "unreachable":  # Another rank may have reached it, and would read another order.
            raise
        lost.append(error)
        return 0


def random_order() -> str:
    """Digits that change where another version of NumPy permutes, and so orders the examples, otherwise."""
    return hashlib.sha256(np.random.default_rng(0).permutation(1000).tobytes()).hexdigest()[:16]
