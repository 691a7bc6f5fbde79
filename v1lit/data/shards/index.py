"""`index.json`: what is in a folder of shards, with checksums. Written last, it makes the folder complete.

An index made with a folder of its own (`v1lit data index --out`) names files elsewhere, by URL or absolute
path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v1lit.data.errors import ShardError
from v1lit.data.remote import DEFAULT_RETRY, RemoteError, Retry, exists, is_remote, join, read_bytes
from v1lit.data.shards.sidecar import MAX_SIDECAR_BYTES, SUFFIX, ShardIndex, read_shard_index
from v1lit.files import sha256_of, write_atomically
from v1lit.paths import expand_path

SCHEMA_VERSION = 2
INDEX_NAME = "index.json"
MAX_INDEX_BYTES = 2**28
REINDEX = "`v1lit data index` makes it again"


@dataclass(frozen=True)
class ShardInfo:
    """One shard of an index: its file, how many examples, images and regions it holds, bytes and SHA-256."""

    file: str
    """A name beside the index; in an index of files elsewhere an absolute path or URL."""
    examples: int
    images: int
    regions: int
    bytes: int
    sha256: str


class ShardTable:
    """The shards of an index as columns, small for 100,000 of them: lists and int64 arrays `[shards]`."""

    def __init__(self, shards: Iterable[ShardInfo | Mapping[str, Any]]) -> None:
        rows = [vars(shard) if isinstance(shard, ShardInfo) else shard for shard in shards]
        self.files: list[str] = _column(rows, "file", str)
        self.sha256: list[str] = _column(rows, "sha256", str)
        self.examples = _numbers(rows, "examples")
        self.images = _numbers(rows, "images")
        self.regions = _numbers(rows, "regions")
        self.bytes = _numbers(rows, "bytes")

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[ShardInfo]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> ShardInfo:
        return ShardInfo(
            file=self.files[index],
            examples=int(self.examples[index]),
            images=int(self.images[index]),
            regions=int(self.regions[index]),
            bytes=int(self.bytes[index]),
            sha256=self.sha256[index],
        )


def _column(rows: Sequence[Mapping[str, Any]], name: str, kind: type) -> list[Any]:
    values = [row[name] for row in rows]
    if wrong := [value for value in values if type(value) is not kind]:
        raise TypeError(f"{name} of a shard is {wrong[0]!r:.80}")
    return values


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> npt.NDArray[np.int64]:
    numbers = np.array(_column(rows, name, int), dtype=np.int64)
    if (numbers < 0).any():
        raise ValueError(f"{name} of a shard is {numbers.min()}")
    return numbers


def write_index(folder: str | Path, shards: Iterable[ShardInfo], **more: Any) -> dict[str, Any]:
    """Write `index.json`, which makes the folder complete; returns its content. `more` is added as it is."""
    shards = list(shards)
    head: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        **{name: sum(getattr(shard, name) for shard in shards) for name in ("examples", "images", "regions")},
        **more,
    }
    rows = [dict(vars(shard)) for shard in shards]
    # One line per shard: small, and a difference between two indexes says which shards differ.
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    opened = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
    text = f'{opened},\n "shards": [\n{lines}\n ]\n}}\n'
    write_atomically(Path(folder) / INDEX_NAME, text)
    return {**head, "shards": rows}


def read_index(location: str | Path, retry: Retry = DEFAULT_RETRY) -> dict[str, Any]:
    """Read `index.json` of a folder of shards, local or a URL. Its "shards" are a `ShardTable`.

    Args:
        retry: how often a URL is asked for, and how long that may take.

    Raises ValueError where there is no index (the folder is missing or was never completed), or one that this
    version cannot read.
    """
    location = expand_path(location)
    path = join(location, INDEX_NAME)
    _check_presence(location, path, retry)
    data = read_bytes(path, MAX_INDEX_BYTES, retry)
    try:
        index = json.loads(data)
        version = index["schema_version"]
        shards = ShardTable(index["shards"]) if version == SCHEMA_VERSION else None
        damaged = shards is not None and index["examples"] != int(shards.examples.sum())
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); {REINDEX}") from error
    if shards is None:
        raise ValueError(
            f"{path} has schema version {version!r}, this version of v1lit reads {SCHEMA_VERSION}; {REINDEX}"
        )
    if damaged:
        raise ValueError(f"{path} is damaged: it says {index['examples']!r} examples; {REINDEX}")
    index["shards"] = shards
    elsewhere = "location" in index and not is_remote(location)
    for file in shards.files:
        if not (is_plain_name(file) or (elsewhere and is_full_location(file))):
            raise ValueError(f"{path} names a shard outside of its folder: {file!r:.200}")
    return index


def _check_presence(location: str, path: str, retry: Retry) -> None:
    if exists(path, retry):
        return
    if is_remote(location):
        raise ValueError(f"{location} has no {INDEX_NAME}: make one with `v1lit data index`")
    if os.path.isdir(location):
        why = f"it has no {INDEX_NAME}; `v1lit data index` makes one"
        raise ValueError(f"{location} is incomplete or not a folder of shards: {why}")
    raise ValueError(f"{location} does not exist: it has no {INDEX_NAME}")


def list_shards(location: str | Path) -> list[ShardInfo]:
    """The shards that the index names, in order. ValueError as `read_index`, or for a missing local file."""
    location = expand_path(location)
    shards = list(read_index(location)["shards"])
    for shard in shards:
        path = shard_location(location, shard.file)
        if not is_remote(path) and not os.path.isfile(path):
            raise ValueError(f"{location}: {shard.file} is missing, though {INDEX_NAME} names it")
    return shards


# --- names and places ---


def is_plain_name(file: str) -> bool:
    """Whether a shard's name is that of a file beside the index."""
    return file not in ("", ".", "..") and file.isprintable() and not set(file) & set("/\\")


def is_full_location(file: str) -> bool:
    """Whether a shard's name says by itself where it is: an absolute path or a URL."""
    return file.isprintable() and (is_remote(file) or os.path.isabs(file))


def shard_location(location: str | Path, file: str) -> str:
    """Where a shard lies that the index at `location` calls `file`."""
    return file if is_full_location(file) else join(str(location), file)


def sidecar_name(file: str) -> str:
    """Name of the sidecar of a shard, beside the index. Shards elsewhere can share one: a hash is added."""
    if not is_full_location(file):
        return file.removesuffix(".tar") + SUFFIX
    stem = file.partition("?")[0].rpartition("/")[2].removesuffix(".tar")
    mark = hashlib.sha256(file.encode()).hexdigest()[:12]
    return f"{re.sub('[^A-Za-z0-9_.-]', '_', stem)[:100]}-{mark}{SUFFIX}"


def sidecar_location(location: str | Path, file: str) -> str:
    """Where the sidecar of that shard lies."""
    return join(str(location), sidecar_name(file))


def read_sidecar(location: str | Path, shard: ShardInfo) -> ShardIndex:
    """The `ShardIndex` of a shard of the index at `location`, local or a URL.

    Raises ShardError where it is missing or damaged, or counts other examples than index.json.
    """
    path, name = sidecar_location(location, shard.file), shard_location(location, shard.file)
    try:
        data = read_bytes(path, MAX_SIDECAR_BYTES)
    except RemoteError:
        raise
    except ShardError as error:
        reason = f"its index {path} {error.reason}; `v1lit data index` makes it"
        raise ShardError(name, None, reason, error.kind) from error
    return read_shard_index(data, shard=name, examples=shard.examples, size=shard.bytes)


# --- files ---


def verify_shard(folder: str | Path, shard: ShardInfo) -> bool:
    """Whether the local file is there with the size and checksum of the index, and its sidecar fits."""
    path = Path(shard_location(folder, shard.file))
    try:
        read_sidecar(folder, shard)
    except ShardError:
        return False
    return path.is_file() and path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256
