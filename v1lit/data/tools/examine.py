"""One shard compared with its index and read to the last pixel: what is wrong with it, and what is in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from v1lit.data.errors import ShardError
from v1lit.data.example.images import ImageError, decode_image
from v1lit.data.shards import INDEX_NAME, Shard, ShardIndex, ShardInfo, read_sidecar
from v1lit.data.shards.scan import Scan
from v1lit.data.tools.content import fetch, index_of, scan_file
from v1lit.data.tools.find import AGAIN, Finding, ShardFile
from v1lit.data.tools.repeated import hash_keys


@dataclass(frozen=True)
class Task:
    """A shard to examine. `cache`: see `fetch`."""

    shard: ShardFile
    decode: bool
    cache: tuple[str, int]


@dataclass
class Examined:
    """What was found in one shard. `keys`: hashes uint64 [examples, 2] of the names of its examples."""

    shard: str
    examples: int = 0
    images: int = 0
    regions: int = 0
    bytes: int = 0
    findings: dict[Finding, None] = field(default_factory=dict)
    keys: npt.NDArray[np.uint64] = field(default_factory=lambda: hash_keys([]))

    def add(self, kind: str, reason: str, key: str | None = None) -> None:
        """Note something that is wrong, once."""
        self.findings[Finding(self.shard, key, kind, reason)] = None


def examine(task: Task) -> Examined:
    """Examine one shard; everything wrong is in the result."""
    for again in (True, False):
        examined, path = Examined(task.shard.location), None
        try:
            path = fetch(task.shard, task.cache)
            _examine_file(task, path, examined)
        except ShardError as error:
            _add_unread(task.shard, error, examined)
        if path is None or path.is_file() or not again:  # Else others made room in the cache meanwhile.
            return examined
    raise AssertionError("unreachable")


def _add_unread(shard: ShardFile, error: ShardError, examined: Examined) -> None:
    missing = error.kind == "missing" or getattr(error, "status", None) in (404, 410)
    if missing and shard.info is not None:
        reason = f"is missing, though {INDEX_NAME} names it: get it again, or leave it out ({AGAIN})"
        examined.add("missing", reason)
    else:
        examined.add(error.kind, error.reason, error.key)


def _examine_file(task: Task, path: Path, examined: Examined) -> None:
    info, examined.bytes = task.shard.info, path.stat().st_size
    scan = scan_file(path)
    index, sha256 = index_of(path, scan)
    changed = info is not None and _compare_file(info, sha256, examined)
    _add_problems(scan, examined)
    if info is not None and task.shard.index is not None:
        _compare_sidecar(task.shard.index, info, scan, index, changed, examined)
    _read_examples(task, path, scan, index, examined)
    if info is not None and not examined.findings:
        _compare_counts(info, examined)


def _compare_file(info: ShardInfo, sha256: str, examined: Examined) -> bool:
    """Whether the file is another than that of the index."""
    if examined.bytes == info.bytes and sha256 == info.sha256:
        return False
    what = "does not have the SHA-256 that the index says"
    if examined.bytes != info.bytes:
        what = f"has {examined.bytes} bytes, but the index says {info.bytes}"
    examined.add("checksum", f"{what}: get the shard again; if it is meant to be so, {AGAIN}")
    return True


def _add_problems(scan: Scan, examined: Examined) -> None:
    examined.examples, examined.keys = len(scan.keys), hash_keys(scan.keys)
    odd = set(scan.odd.values())  # Found again, as examples that cannot be read.
    for problem in [one for one in scan.problems if one not in odd]:
        reason = problem.reason
        if problem is scan.damage:
            last = f", the last one is {scan.keys[-1]!r}" if scan.keys else ""
            reason += f" ({len(scan.keys)} examples can be found{last}): get the shard again"
        examined.add(problem.kind, reason, problem.key)


def _compare_sidecar(
    folder: str, info: ShardInfo, scan: Scan, is_so: ShardIndex, changed: bool, examined: Examined
) -> None:
    try:
        said = read_sidecar(folder, info)
    except ShardError as error:
        examined.add("index", error.reason)
        return
    same_places = np.array_equal(said.offsets, is_so.offsets)
    if not same_places and scan.damage is None:
        reason = f"its index puts {len(said)} examples at other places than the file does"
        examined.add("index", f"{reason}: get the shard again, or {AGAIN}")
    elif same_places:
        for number in np.flatnonzero(said.crc32 != is_so.crc32):
            if changed:
                reason = "was changed: it does not have the checksum that the index says"
                examined.add("checksum", reason, scan.keys[number])
            else:
                examined.add("index", f"the index has another checksum for it; {AGAIN}", scan.keys[number])


def _read_examples(task: Task, path: Path, scan: Scan, index: ShardIndex, examined: Examined) -> None:
    with Shard(path, name=task.shard.location, index=index) as shard:
        for number, key in enumerate(scan.keys):
            try:
                example = shard.example(number)
            except ShardError as error:
                examined.add(error.kind, error.reason, error.key)
                continue
            examined.images += len(example.images)
            examined.regions += len(example.regions)
            for place, image in enumerate(example.images if task.decode else ()):
                try:
                    decode_image(image)
                except ImageError as error:
                    examined.add("image", f"image {place}: {error}", key)


def _compare_counts(info: ShardInfo, examined: Examined) -> None:
    for what in ("examples", "images", "regions"):
        said, is_so = getattr(info, what), getattr(examined, what)
        if said != is_so:
            examined.add("index", f"{INDEX_NAME} says {said} {what}, the shard holds {is_so}; {AGAIN}")
