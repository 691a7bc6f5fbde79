"""One shard compared with its index and read to the last pixel: what is wrong with it, and what is in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from v1lit.data.errors import ShardError
from v1lit.data.example import Example
from v1lit.data.images import ImageError, decode_image
from v1lit.data.shards import INDEX_NAME, Shard, ShardIndex, ShardInfo, read_sidecar
from v1lit.data.shards.index import REINDEX
from v1lit.data.shards.scan import Scan
from v1lit.data.tools.content import fetch, index_of, scan_file
from v1lit.data.tools.find import Finding, ShardFile
from v1lit.data.tools.repeated import hash_keys
from v1lit.data.tools.survey import Survey, Surveyor


@dataclass
class ShardReport:
    """What is in one shard, and what is wrong with it."""

    shard: str
    examples: int = 0
    images: int = 0
    regions: int = 0
    bytes: int = 0
    findings: dict[Finding, None] = field(default_factory=dict)
    keys: npt.NDArray[np.uint64] = field(default_factory=lambda: hash_keys([]))
    """`[examples, 2]`, hashes of the names of its examples."""
    survey: Survey = field(default_factory=Survey)
    """What its examples are, where that was asked for."""

    def add(self, kind: str, reason: str, key: str | None = None) -> None:
        """Note something that is wrong, once."""
        self.findings[Finding(self.shard, key, kind, reason)] = None


def examine(
    shard: ShardFile, decode: bool, cache: tuple[str, int], surveyor: Surveyor | None = None
) -> ShardReport:
    """Examine one shard, its images decoded if `decode`; everything wrong is in the result.

    `cache`: see `fetch`. `surveyor`: counts the examples that can be used. Raises MapError as its map.
    """
    for again in (True, False):
        report, path = ShardReport(shard.location), None
        try:
            path = fetch(shard, cache)
            _examine_file(shard, path, decode, surveyor, report)
        except ShardError as error:
            _add_unread(shard, error, report)
        if path is None or path.is_file() or not again:  # Else others made room in the cache meanwhile.
            return report
    raise AssertionError("unreachable")


def _add_unread(shard: ShardFile, error: ShardError, report: ShardReport) -> None:
    missing = error.kind == "missing" or getattr(error, "status", None) in (404, 410)
    if missing and shard.info is not None:
        reason = f"is missing, though {INDEX_NAME} names it: get it again, or leave it out ({REINDEX})"
        report.add("missing", reason)
    else:
        report.add(error.kind, error.reason, error.key)


def _examine_file(
    shard: ShardFile, path: Path, decode: bool, surveyor: Surveyor | None, report: ShardReport
) -> None:
    info, report.bytes = shard.info, path.stat().st_size
    scan = scan_file(path)
    index, sha256 = index_of(path, scan)
    changed = info is not None and _compare_file(info, sha256, report)
    _add_problems(scan, report)
    if info is not None and shard.index is not None:
        _compare_sidecar(shard.index, info, scan, index, changed, report)
    with Shard(path, name=report.shard, index=index) as opened:
        for example_index, key in enumerate(scan.keys):
            example = _read_example(opened, example_index, key, decode, report)
            if surveyor is None or example is None:
                continue
            refused = surveyor.note(report.survey, shard, example_index, key, example)
            if refused is not None:
                report.add(refused.kind, refused.reason, key)
    report.survey.unusable = len({finding.key for finding in report.findings} - {None})
    if info is not None and not report.findings:
        for what in ("examples", "images", "regions"):
            said, is_so = getattr(info, what), getattr(report, what)
            if said != is_so:
                report.add("index", f"{INDEX_NAME} says {said} {what}, the shard holds {is_so}; {REINDEX}")


def _compare_file(info: ShardInfo, sha256: str, report: ShardReport) -> bool:
    """Whether the file is another than that of the index."""
    if report.bytes == info.bytes and sha256 == info.sha256:
        return False
    what = "does not have the SHA-256 that the index says"
    if report.bytes != info.bytes:
        what = f"has {report.bytes} bytes, but the index says {info.bytes}"
    report.add("checksum", f"{what}: get the shard again; if it is meant to be so, {REINDEX}")
    return True


def _add_problems(scan: Scan, report: ShardReport) -> None:
    report.examples, report.keys = len(scan.keys), hash_keys(scan.keys)
    odd = set(scan.odd.values())  # Noted again, as examples that cannot be read.
    for problem in [problem for problem in scan.problems if problem not in odd]:
        reason = problem.reason
        if problem is scan.damage:
            last = f", the last one is {scan.keys[-1]!r}" if scan.keys else ""
            reason += f" ({len(scan.keys)} examples can be found{last}): get the shard again"
        report.add(problem.kind, reason, problem.key)


def _compare_sidecar(
    folder: str, info: ShardInfo, scan: Scan, is_so: ShardIndex, changed: bool, report: ShardReport
) -> None:
    try:
        said = read_sidecar(folder, info)
    except ShardError as error:
        report.add("index", error.reason)
        return
    same_places = np.array_equal(said.offsets, is_so.offsets)
    if not same_places and scan.damage is None:
        reason = f"its index puts {len(said)} examples at other places than the file does"
        report.add("index", f"{reason}: get the shard again, or {REINDEX}")
    elif same_places:
        kind, reason = "index", f"the index has another checksum for it; {REINDEX}"
        if changed:
            kind, reason = "checksum", "was changed: it does not have the checksum that the index says"
        for example_index in np.flatnonzero(said.crc32 != is_so.crc32):
            report.add(kind, reason, scan.keys[example_index])


def _read_example(
    shard: Shard, example_index: int, key: str, decode: bool, report: ShardReport
) -> Example | None:
    """One example; None where it, or one of the images that were to be decoded, cannot be used."""
    try:
        example = shard.example(example_index)
    except ShardError as error:
        report.add(error.kind, error.reason, error.key)
        return None
    report.images += len(example.images)
    report.regions += len(example.regions)
    whole = True
    for place, image in enumerate(example.images if decode else ()):
        try:
            decode_image(image)
        except ImageError as error:
            whole = False
            report.add("image", f"image {place}: {error}", key)
    return example if whole else None
