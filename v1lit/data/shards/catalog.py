"""`Catalog`: the shards of one location, how many examples each holds, and how to open one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from v1lit.data.config import StreamConfig
from v1lit.data.errors import ShardError
from v1lit.data.remote import (
    RemoteError,
    Retry,
    ShardCache,
    exists,
    expand,
    is_open,
    is_remote,
    join,
    may_be_folder,
    parent,
    read_bytes,
)
from v1lit.data.shards import (
    INDEX_NAME,
    MAX_SIDECAR_BYTES,
    Shard,
    ShardIndex,
    ShardInfo,
    ShardTable,
    read_index,
    read_shard_index,
    read_sidecar,
    shard_location,
    sidecar_location,
    sidecar_name,
)
from v1lit.paths import expand_path

log = logging.getLogger(__name__)

OPENED_AT_LAST = 10
"""How often a shard is fetched that others delete from the cache before it is open."""


class ShardEntry(NamedTuple):
    """Where a shard lies, and the folder, table and row of the index that lists it, if any does."""

    location: str
    folder: str = ""
    table: ShardTable | None = None
    row: int = 0

    @property
    def info(self) -> ShardInfo | None:
        """Its line of the index."""
        return None if self.table is None else self.table[self.row]


def _listed(location: str, retry: Retry) -> Iterator[ShardEntry]:
    """The shards of a location in order, each with its line of an index as far as one is there."""
    if may_be_folder(location):
        if exists(join(location, INDEX_NAME), retry):
            yield from _of_index(location, retry)
            return
        location = join(location, "*.tar")
    files = expand(location, retry)
    listed: dict[str, ShardEntry] = {}
    for folder in dict.fromkeys(map(parent, files)):
        if is_open(join(folder, INDEX_NAME), retry):
            listed |= {shard.location: shard for shard in _of_index(folder, retry)}
    for file in files:
        yield listed.get(file) or listed.get(f"./{file}") or ShardEntry(file)


def _of_index(folder: str, retry: Retry) -> Iterator[ShardEntry]:
    table: ShardTable = read_index(folder, retry)["shards"]
    for row, file in enumerate(table.files):
        yield ShardEntry(shard_location(folder, file), folder, table, row)


class Catalog:
    """Shards in their listed order. With an index, opening one reads no tar headers, and counts are known.

    Args:
        location: a folder with an index.json, or without one; a tar file; or a pattern such as
            `data/*/shard-*.tar` or `https://host/shard-{000..099}.tar`, whose folders may have an index.json.
        config: cache and retries for remote shards.

    Raises ValueError where there are no shards, or an index cannot be read.
    """

    def __init__(self, location: str | Path, config: StreamConfig | None = None) -> None:
        self.location, self.config = expand_path(location), config or StreamConfig()
        self.retry = self.config.retry
        self._shards = list(_listed(self.location, self.retry))
        self.files = [shard.location for shard in self._shards]
        if not self.files:
            raise ValueError(
                f"{location}: its {INDEX_NAME} names no shards; where an import has rejected every row, its "
                "rejected.jsonl says why"
            )
        counts = (-1 if shard.table is None else shard.table.examples[shard.row] for shard in self._shards)
        self.counts: npt.NDArray[np.int64] = np.fromiter(counts, dtype=np.int64)

    @property
    def indexed(self) -> bool:
        """Whether the examples of all shards are counted."""
        return bool((self.counts >= 0).all())

    @cached_property
    def content(self) -> str:
        """Hexadecimal digits that change when the shards do; without an index, when their names do."""
        digest = hashlib.sha256()
        for file, _, table, row in self._shards:
            digest.update((file if table is None else table.sha256[row]).encode() + b"\n")
        return digest.hexdigest()

    @cached_property
    def remote(self) -> bool:
        """Whether some shards come over a network."""
        return any(is_remote(file) for file in self.files)

    @property
    def examples(self) -> int | None:
        """Examples of all shards; None without an index."""
        return int(self.counts.sum()) if self.indexed else None

    def starts(self) -> npt.NDArray[np.int64]:
        """Place of the first example of every shard, and behind the last one, `[shards + 1]`."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def index(self, shard: int) -> ShardIndex | None:
        """Where the examples of one shard lie; None where it has no index. Raises ShardError."""
        folder, info = self._shards[shard].folder, self._shards[shard].info
        if info is None:
            return None
        sidecar = sidecar_location(folder, info.file)
        if not is_remote(sidecar):
            return read_sidecar(folder, info)
        # Kept, because of many shards in use each is opened many times.
        try:
            path = self.cache.fetch(sidecar)
        except RemoteError as error:
            last = f"{error.last} (of {sidecar_name(info.file)})"
            raise RemoteError(self.files[shard], error.attempts, last, error.kind, error.status) from error
        data = read_bytes(str(path), MAX_SIDECAR_BYTES)
        return read_shard_index(data, shard=self.files[shard], examples=info.examples, size=info.bytes)

    @cached_property
    def cache(self) -> ShardCache:
        """Where remote shards are kept."""
        return ShardCache(self.config.cache_folder / "shards", int(self.config.cache_gb * 1e9), self.retry)

    def fetch(self, shard: int) -> Path:
        """Path of one shard on a local disk. Raises ShardError where it cannot be had."""
        file, info = self.files[shard], self._shards[shard].info
        if not is_remote(file):
            return Path(file)
        return self.cache.fetch(file) if info is None else self.cache.fetch(file, info.bytes, info.sha256)

    def open(self, shard: int) -> Shard:
        """Open one shard for reading in any order. Raises ShardError."""
        for left in reversed(range(OPENED_AT_LAST)):
            try:
                index = self.index(shard)
                return Shard(self.fetch(shard), name=self.files[shard], index=index)
            except ShardError as error:
                # Between fetching and opening, another process may have made room in the cache.
                if not left or error.kind != "unreachable" or isinstance(error, RemoteError):
                    raise
        raise AssertionError("unreachable")

    def may_mend(self, shard: int, error: ShardError) -> bool:
        """Whether an error may come from a damaged copy of a remote shard, rather than from the shard."""
        kinds = ("shard", "checksum", "member")
        if isinstance(error, RemoteError) or error.kind not in kinds or not is_remote(self.files[shard]):
            return False
        # With an index, members are looked at only after their checksum was found to be right.
        return error.kind != "member" or self._shards[shard].table is None

    def discard(self, shard: int) -> None:
        """Delete the copies of a remote shard and its index, unless they are right. Raises CacheError."""
        folder, info = self._shards[shard].folder, self._shards[shard].info
        self.cache.discard(self.files[shard], None if info is None else info.sha256)
        if info is not None:
            self.cache.discard(sidecar_location(folder, info.file))
