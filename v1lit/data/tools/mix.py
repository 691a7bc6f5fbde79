"""What a mixture of sources draws: per epoch, in its first examples, and how often each example comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from v1lit.data.config import MixtureConfig, StreamConfig
from v1lit.data.loading.sequence import open_sequence

FIRST = 1_000
"""Examples at the beginning of an epoch that are looked at."""


@dataclass(frozen=True)
class SourceShare:
    """What one source contributes to an epoch."""

    location: str
    shards: int
    examples: int
    weight: float | None
    limit: int | None
    per_epoch: int
    """Examples drawn from it per epoch."""
    share: float
    """Of all examples of an epoch."""
    first: int
    """Of the epoch's first 1,000 examples (or all, where it has fewer)."""

    @property
    def times(self) -> float:
        """How often each of its examples comes per epoch, on average."""
        return self.per_epoch / max(1, self.examples)


def mixture_shares(
    sources: Sequence[MixtureConfig], config: StreamConfig, seed: int = 0, epoch: int = 0
) -> list[SourceShare]:
    """What each source contributes to an epoch, and to its first examples; reads indices only.

    Raises ValueError as `open_sequence`, and for a source without an index.
    """
    opened = open_sequence(sources, config, seed)
    for catalog in opened.catalogs:
        if not catalog.indexed:
            raise ValueError(
                f"{catalog.location} has no index, so nobody knows what would be drawn from it; make one "
                "with `v1lit data index`"
            )
    sequence = opened.sequence
    total = sequence.examples
    assert total is not None
    places = sequence.find(epoch, np.arange(min(FIRST, sequence.length or 0)))
    return [
        SourceShare(
            location=config_of_source.shards,
            shards=len(catalog.files),
            examples=int(catalog.counts.sum()),
            weight=config_of_source.weight,
            limit=config_of_source.limit,
            per_epoch=int(drawn or 0),
            share=(drawn or 0) / total,
            first=int((places.sources == source_index).sum()),
        )
        for source_index, (config_of_source, catalog, drawn) in enumerate(
            zip(sources, opened.catalogs, sequence.draws, strict=True)
        )
    ]


def times_per_epoch(
    sources: Sequence[MixtureConfig], config: StreamConfig, seed: int = 0
) -> dict[str, float]:
    """How often each example of every location comes per epoch, on average.

    Empty where that is not known: without an index, or where one cannot be read.
    """
    times: dict[str, float] = {}
    try:
        for source in mixture_shares(sources, config, seed):
            times[source.location] = times.get(source.location, 0.0) + source.times
    except ValueError:
        return {}
    return times
