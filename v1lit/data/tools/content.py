"""What a shard really holds, from its file alone."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np

from v1lit.data.errors import DamageError, ShardError
from v1lit.data.remote import ShardCache, is_remote
from v1lit.data.shards import ShardIndex
from v1lit.data.shards.file import RandomAccess
from v1lit.data.shards.scan import Scan, checksums, scan_headers
from v1lit.data.tools.find import ShardFile


def fetch(shard: ShardFile, cache: tuple[str, int]) -> Path:
    """Path of a shard on a local disk. `cache`: folder and most bytes of the cache for remote ones.

    Raises ShardError where it cannot be fetched, of kind "missing" where there is no local file.
    """
    if is_remote(shard.location):
        return _open_cache(*cache).fetch(shard.location)
    if not os.path.isfile(shard.location):
        raise ShardError(shard.location, None, "there is no such file", "missing")
    return Path(shard.location)


_open_cache = lru_cache(maxsize=1)(ShardCache)


def scan_file(path: Path) -> Scan:
    """Names and places of the examples, as far as they can be found, and what is wrong with the headers.

    Raises ShardError where the file cannot be opened.
    """
    with RandomAccess(path) as file:
        return scan_headers(file.read, file.size)


def index_of(path: Path, scan: Scan) -> tuple[ShardIndex, str]:
    """The index of what a scan found, with the checksums that the bytes have now; and SHA-256 of the file.

    Raises ShardError where the file cannot be read, or was cut off meanwhile.
    """
    with RandomAccess(path) as file:
        try:
            crc32, sha256 = checksums(file.read, scan.offsets, file.size)
        except DamageError as error:
            raise error.in_shard(path) from error
    return ShardIndex(np.array(scan.offsets, dtype=np.int64), crc32), sha256
