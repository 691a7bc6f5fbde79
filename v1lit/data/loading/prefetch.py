"""Fetches the remote shards that will be read next, while others are being read."""

from __future__ import annotations

import logging
import threading

import numpy as np

from v1lit.data.errors import ShardError
from v1lit.data.loading.sequence import OpenedSequence

log = logging.getLogger(__name__)
LONGEST_END = 10.0
"""Seconds to wait for the file that is being fetched."""


class ShardPrefetcher:
    """A thread that brings the shards of a rank's next window of examples into the cache.

    A context manager. The thread begins when `reached` is first called: workers have been forked by then,
    in which a lock that it held would stay locked. It ends with the block, at the latest after the file that
    it is fetching, which is waited for a few seconds. What cannot be fetched is left to the reader, who meets
    the same problem and reports it. Local shards, and those without an index, are not fetched.

    Args:
        opened: the examples and their order.
        epoch: whose order.
        rank, ranks: the indices rank, rank + ranks, rank + 2 ranks, ... of the epoch are read here.
        window: `data.stream.shuffle_window`, examples.
    """

    def __init__(self, opened: OpenedSequence, epoch: int, rank: int, ranks: int, window: int) -> None:
        self.catalogs, self.sequence, self.epoch = opened.catalogs, opened.sequence, epoch
        self.rank, self.ranks = rank, ranks
        self.window = window * opened.sequence.lanes
        self.fetches = opened.remote and opened.indexed
        self._wanted: list[tuple[int, int]] = []
        self._fetched: set[tuple[int, int]] = set()
        self._looked_up_to = 0
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="v1lit-prefetch", daemon=True)

    def reached(self, epoch_index: int) -> None:
        """Say how far the epoch has been read; a window from there on is fetched."""
        if self.fetches and epoch_index >= 0 and epoch_index + self.window // 2 >= self._looked_up_to:
            if self._thread.ident is None:
                self._thread.start()
            self._look_ahead(epoch_index)

    def _look_ahead(self, epoch_index: int) -> None:
        self._looked_up_to = epoch_index + self.window
        first = epoch_index + (self.rank - epoch_index) % self.ranks
        refs = self.sequence.find(self.epoch, np.arange(first, self._looked_up_to, self.ranks))
        shards = zip(refs.sources[refs.present].tolist(), refs.shards[refs.present].tolist(), strict=True)
        with self._changed:
            self._wanted = [shard for shard in dict.fromkeys(shards) if shard not in self._fetched]
            self._changed.notify()

    def __enter__(self) -> ShardPrefetcher:
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        # Workers are forked soon, better without a thread at work; but a fetch that hangs keeps nobody.
        if self._thread.is_alive():
            self._thread.join(LONGEST_END)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._wanted)
                if self._ended:
                    return
                source, shard_index = shard = self._wanted.pop(0)
                self._fetched.add(shard)
            try:
                self.catalogs[source].fetch(shard_index)
                self.catalogs[source].index(shard_index)
            except (ShardError, ValueError, OSError) as error:
                log.info("not fetched ahead: %s", error)
