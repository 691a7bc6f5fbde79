"""Which keys occur more than once among any number of shards, in bounded memory.

A key is known by 16 bytes of its hash (the chance that two of 10^9 agree is 10^-21), and with its place it
takes 24 bytes. Beyond `BUFFER` keys they go to 256 files by the first byte of the hash, and every file is
searched by itself: 10^8 examples (10 TB of 100 kB each) take 2.4 GB of disk and some 50 MB of memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BUFFER = 2**20
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("shard", "<u4"), ("example", "<u4")])


class KeyPlace(NamedTuple):
    """An example: index of its shard, and its own index in it."""

    shard: int
    example: int


def hash_keys(keys: Iterable[str]) -> npt.NDArray[np.uint64]:
    """`[keys, 2]` uint64, two halves of the hash of each key."""
    digests = b"".join(
        hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).digest() for key in keys
    )
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2)


class RepeatedKeys:
    """Collects the hashes of keys, then says which came again.

    Args:
        folder: for temporary files; belongs to this object alone, and whoever made it deletes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: list[npt.NDArray[np.void]] = []
        self._records = 0

    def add(self, shard: int, hashes: npt.NDArray[np.uint64]) -> None:
        """Take the hashes, `[examples, 2]`, of all examples of a shard, in their order."""
        records = np.empty(len(hashes), dtype=_RECORD)
        records["high"], records["low"] = hashes[:, 0], hashes[:, 1]
        records["shard"], records["example"] = shard, np.arange(len(hashes))
        self._waiting.append(records)
        self._records += len(records)
        if self._records >= BUFFER:
            self._spill()

    def pairs(self) -> Iterator[tuple[KeyPlace, KeyPlace]]:
        """For every example whose key came before: the place of the first one, and its own."""
        if files := sorted(self.folder.glob("keys-*")):
            self._spill()
            for path in files:
                yield from _pairs(np.fromfile(path, dtype=_RECORD))
        elif self._waiting:
            yield from _pairs(np.concatenate(self._waiting))

    def _spill(self) -> None:
        if not self._records:
            return
        records = np.concatenate(self._waiting)
        buckets = records["high"] >> np.uint64(56)
        order = np.argsort(buckets, kind="stable")
        starts = np.searchsorted(buckets[order], np.arange(257, dtype=np.uint64))
        for bucket in range(256):
            with open(self.folder / f"keys-{bucket:03d}", "ab") as file:
                file.write(records[order[starts[bucket] : starts[bucket + 1]]].tobytes())
        self._waiting, self._records = [], 0


def _pairs(records: npt.NDArray[np.void]) -> Iterator[tuple[KeyPlace, KeyPlace]]:
    records = records[np.lexsort((records["example"], records["shard"], records["low"], records["high"]))]
    same = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
    places, first = records[["shard", "example"]], 0
    for index in np.flatnonzero(same).tolist():
        if index == 0 or not same[index - 1]:
            first = index
        yield KeyPlace(*places[first].tolist()), KeyPlace(*places[index + 1].tolist())
