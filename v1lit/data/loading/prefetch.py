"""Fetches the remote shards that will be read next, while others are being read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import numpy as np

from v1lit.data.errors import ShardError
from v1lit.data.sampling.mixture import GlobalSequence
from v1lit.data.shards.catalog import Catalog

log = logging.getLogger(__name__)
LONGEST_END = 10.0
"""Seconds to wait for the file that is being fetched."""


class ShardPrefetcher:
    """A thread that brings the shards of a rank's next window of examples into the cache.

    A context manager: the thread ends with the block, at the latest after the file that it is fetching, which
    is waited for a few seconds. What cannot be fetched is left to the reader, who meets the same problem and
    reports it.

    rank, ranks: the positions rank, rank + ranks, rank + 2 ranks, ... are read here.
    """

    def __init__(
        self,
        catalogs: Sequence[Catalog],
        sequence: GlobalSequence,
        epoch: int,
        rank: int,
        ranks: int,
        window: int,
    ) -> None:
        self.catalogs, self.sequence, self.epoch = catalogs, sequence, epoch
        self.rank, self.ranks = rank, ranks
        self.window = window * sequence.lanes
        self._wanted: list[tuple[int, int]] = []
        self._fetched: set[tuple[int, int]] = set()
        self._looked_up_to = 0
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="v1lit-prefetch", daemon=True)

    def reached(self, position: int) -> None:
        """Say which position of the epoch has been reached; a window from there on is fetched."""
        if position + self.window // 2 < self._looked_up_to:
            return
        self._looked_up_to = position + self.window
        first = position + (self.rank - position) % self.ranks
        found = self.sequence.find(self.epoch, np.arange(first, self._looked_up_to, self.ranks))
        shards = zip(found.sources[found.present].tolist(), found.shards[found.present].tolist(), strict=True)
        with self._changed:
            self._wanted = [one for one in dict.fromkeys(shards) if one not in self._fetched]
            self._changed.notify()

    def __enter__(self) -> ShardPrefetcher:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        # Workers are forked soon, better without a thread at work; but a fetch that hangs keeps nobody.
        self._thread.join(LONGEST_END)

    def _run(self) -> None:
        while (shard := self._next()) is not None:
            source, number = shard
            try:
                self.catalogs[source].fetch(number)
                self.catalogs[source].index(number)
            except (ShardError, ValueError, OSError) as error:
                log.info("not fetched ahead: %s", error)

    def _next(self) -> tuple[int, int] | None:
        with self._changed:
            while not self._ended and not self._wanted:
                self._changed.wait()
            if self._ended:
                return None
            shard = self._wanted.pop(0)
            self._fetched.add(shard)
            return shard
