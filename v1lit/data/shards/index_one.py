"""One shard read from its beginning to its end, for its index."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from v1lit.data.errors import DamageError, ShardError
from v1lit.data.remote import DEFAULT_RETRY, download, is_remote, read_bytes
from v1lit.data.remote.body import look_up
from v1lit.data.shards.file import RandomAccess
from v1lit.data.shards.index import ShardInfo, ShardTable
from v1lit.data.shards.member import counts
from v1lit.data.shards.reader import Shard
from v1lit.data.shards.scan import checksums, scan_headers
from v1lit.data.shards.sidecar import MAX_SIDECAR_BYTES, ShardIndex, read_record, read_shard_index

MAX_LISTED_OF_SHARD = 20
"""Problems of one shard that are listed; all are counted."""


@dataclass(frozen=True)
class IndexTask:
    """A shard to be indexed."""

    file: str
    """Its name in index.json."""
    location: str
    sidecar: Path
    scratch: Path
    """Folder for a fetched one."""


@dataclass(frozen=True)
class IndexedShard:
    """What is in a shard."""

    info: ShardInfo
    problems: dict[str, int]
    """Kind -> how many examples; damage of the shard counts as one."""
    bad: list[tuple[str | None, str, str]]
    """Key, kind and reason of the first of them."""
    unusable: int
    """How many of the shard's examples cannot be read."""
    sidecar: bytes | None = None
    """Content of the file to be written, None where it is there already."""


def index_one(task: IndexTask) -> IndexedShard:
    """Index one shard, unless its sidecar says that this was done. Runs in other processes."""
    stamp = _stamp(task.location)
    if (kept := _known(task, stamp)) is not None:
        return kept
    if not is_remote(task.location):
        return _read(task, task.location, stamp)
    task.scratch.mkdir(exist_ok=True)
    path = task.scratch / hashlib.sha256(task.location.encode()).hexdigest()
    try:
        download(task.location, path)
        return _read(task, str(path), stamp)
    finally:
        path.unlink(missing_ok=True)


def _stamp(location: str) -> list[Any] | None:
    """What changes when the file does; None where nothing is known to."""
    if not is_remote(location):
        try:
            status = os.stat(location)
        except OSError as error:
            reason = f"cannot be opened ({error.strerror})"
            raise ShardError(location, None, reason, "unreachable") from error
        return [status.st_size, status.st_mtime_ns]
    info = DEFAULT_RETRY.run(location, partial(look_up, location, DEFAULT_RETRY))
    return None if info.tag is None else [info.size, info.tag]


def _known(task: IndexTask, stamp: list[Any] | None) -> IndexedShard | None:
    """What the sidecar that is there says, if the shard has not changed since."""
    try:
        data = read_bytes(str(task.sidecar), MAX_SIDECAR_BYTES)
        record = read_record(data)
        if stamp is None or record.get("stamp") != stamp:
            return None
        info = ShardTable([{**record["info"], "file": task.file}])[0]  # Checks the types.
        read_shard_index(data, examples=info.examples, size=info.bytes)
        bad = [
            (None if key is None else str(key), str(kind), str(reason)) for key, kind, reason in record["bad"]
        ]
        problems = {str(kind): int(n) for kind, n in record["problems"].items()}
        return IndexedShard(info, problems, bad, int(record["unusable"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _read(task: IndexTask, path: str, stamp: list[Any] | None) -> IndexedShard:
    """Read a local file from its beginning to its end."""
    try:
        with RandomAccess(path, task.location) as file:
            scan = scan_headers(file.read, file.size)
            crc32, sha256 = checksums(file.read, scan.offsets, file.size)
    except DamageError as problem:
        raise problem.in_shard(task.location) from problem
    index = ShardIndex(np.array(scan.offsets, dtype=np.int64), crc32)
    odd = set(scan.odd.values())  # Noted again, as examples that cannot be read.
    problems = [problem for problem in scan.problems if problem not in odd]
    bad = [(problem.key, problem.kind, problem.reason) for problem in problems]
    before = len(bad)
    with Shard(path, name=task.location, index=index) as shard:
        images, regions = _try_examples(shard, bad)
    numbers = {"examples": len(index), "images": images, "regions": regions, "bytes": file.size}
    info = ShardInfo(file=task.file, sha256=sha256, **numbers)
    kinds, listed = dict(Counter(kind for _, kind, _ in bad)), bad[:MAX_LISTED_OF_SHARD]
    unusable = len(bad) - before
    record: dict[str, Any] = {"stamp": stamp, "info": {**numbers, "sha256": sha256}}
    record |= {"problems": kinds, "bad": listed, "unusable": unusable}
    return IndexedShard(info, kinds, listed, unusable, index.to_bytes(record))


def _try_examples(shard: Shard, bad: list[tuple[str | None, str, str]]) -> tuple[int, int]:
    """How many images and regions there are; what is wrong is added to `bad`."""
    images = regions = 0
    for index in range(len(shard)):
        try:
            example = shard.example(index)
            num_images, num_regions = len(example.images), len(example.regions)
        except ShardError as error:
            bad.append((error.key, error.kind, error.reason))
            num_images = num_regions = 0
            with suppress(ShardError):  # What is not valid counts as far as it can be read.
                num_images, num_regions = counts(shard.members(index))
        images, regions = images + num_images, regions + num_regions
    return images, regions
