"""First pass of resharding: where every example lies, as a table on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from v1lit.data.errors import ShardError
from v1lit.data.shards import ShardIndex, read_sidecar
from v1lit.data.shards.index import REINDEX
from v1lit.data.shards.scan import Scan
from v1lit.data.tools.content import fetch, index_of, scan_file
from v1lit.data.tools.find import Finding, ShardFile
from v1lit.data.tools.repeated import RepeatedKeys, hash_keys
from v1lit.files import aside, remove, write_atomically
from v1lit.processes import ordered, progress_bar

ROW = np.dtype([("start", "<i8"), ("end", "<i8"), ("crc32", "<u4"), ("shard", "<u4")])
"""One example: its bytes in its shard, their checksum, number of the shard."""
Rows = npt.NDArray[np.void]


class RepeatedIdError(ValueError):
    """An id that occurs twice among the inputs."""


@dataclass(frozen=True)
class ExampleTable:
    """All examples of the inputs in their order."""

    rows: Rows
    """`ROW` `[examples]`, mapped from a file."""
    starts: npt.NDArray[np.int64]
    """`[shards + 1]`, row of the first example of each shard, and behind the last one."""
    findings: list[Finding]
    """What is left out already."""

    @classmethod
    def load(cls, folder: Path) -> ExampleTable:
        """The table that `make_table` left in a folder."""
        record = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        starts = np.cumsum([0, *record["examples"]])
        rows: Rows = np.empty(0, dtype=ROW)
        if starts[-1]:
            rows = np.memmap(folder / "table.bin", dtype=ROW, mode="r", shape=(int(starts[-1]),))
        return cls(rows, starts, [Finding(**finding) for finding in record["findings"]])

    def index(self, shard: int) -> ShardIndex:
        """The index of one shard of the inputs."""
        rows = self.rows[self.starts[shard] : self.starts[shard + 1]]
        return ShardIndex(np.append(rows["start"], rows["end"][-1:]), rows["crc32"].copy())


def make_table(
    folder: Path,
    shards: Sequence[ShardFile],
    cache: tuple[str, int],
    skip: bool,
    workers: int,
    progress: bool,
) -> None:
    """Write the table of all examples to table.bin and table.json in `folder`, unless it is there.

    Raises ShardError for a shard that cannot be used, unless it is to be skipped, and RepeatedIdError for an
    id that occurs twice.
    """
    if (folder / "table.json").is_file():
        return
    remove(folder / "keys")
    (folder / "keys").mkdir()
    repeated, counts, findings = RepeatedKeys(folder / "keys"), list[int](), list[Finding]()
    scanned = ordered(partial(_scan_shard, cache=cache, skip=skip), shards, workers)
    with (
        aside(folder / "table.bin") as unfinished,
        open(unfinished, "wb") as file,
        closing(scanned),
        progress_bar("looking for examples", len(shards), progress) as advance,
    ):
        for shard_index, (rows, hashes, shard_findings) in enumerate(scanned):
            rows["shard"] = shard_index
            file.write(rows.tobytes())
            repeated.add(shard_index, hashes)
            counts.append(len(rows))
            findings += shard_findings
            advance(len(rows))
        _refuse_repeats(repeated, shards, cache)
    record = {"examples": counts, "findings": [asdict(finding) for finding in findings]}
    write_atomically(folder / "table.json", json.dumps(record))


def _scan_shard(
    shard: ShardFile, cache: tuple[str, int], skip: bool
) -> tuple[Rows, npt.NDArray[np.uint64], list[Finding]]:
    """Rows `[examples]` of one shard, hashes `[examples, 2]` of their names, and what is left out."""
    try:
        path = fetch(shard, cache)
        scan = scan_file(path)
        findings = _findings(shard, scan, skip)
        index = index_of(path, scan)[0] if shard.index is None else _sidecar(shard, scan)
    except ShardError as error:
        finding = Finding(shard.location, error.key, error.kind, error.reason)
        if not skip:
            raise finding.as_error() from error
        return np.empty(0, dtype=ROW), hash_keys([]), [finding]
    rows = np.zeros(len(scan.keys), dtype=ROW)
    rows["start"], rows["end"] = scan.offsets[:-1], scan.offsets[1:]
    rows["crc32"] = index.crc32[: len(scan.keys)]
    # What is no example stands in the table and is left out later; its name may come again.
    names = (f"\0{shard.location}\0{n}" if n in scan.odd else key for n, key in enumerate(scan.keys))
    return rows, hash_keys(names), findings


def _findings(shard: ShardFile, scan: Scan, skip: bool) -> list[Finding]:
    """What is wrong with the headers; raises ShardError unless it is to be skipped."""
    odd, findings = set(scan.odd.values()), []
    for problem in scan.problems:
        if problem is not scan.damage and problem not in odd:
            continue  # An id that occurs twice: found later, with both of its places.
        error = problem.in_shard(shard.location)
        if not skip:
            raise error
        if problem is scan.damage:  # All others are noted again when their example is read.
            findings.append(Finding.of(error))
    return findings


def _sidecar(shard: ShardFile, scan: Scan) -> ShardIndex:
    """The index beside a shard, which must fit to the file (to its readable part, if it is damaged)."""
    assert shard.index is not None
    assert shard.info is not None
    index = read_sidecar(shard.index, shard.info)
    damaged = scan.damage is not None
    num_known = len(scan.keys) if damaged else len(scan.offsets)
    fits = len(index) >= len(scan.keys) if damaged else len(index) == len(scan.keys)
    if not fits or not np.array_equal(index.offsets[:num_known], scan.offsets[:num_known]):
        reason = f"its index puts examples at other places than the file does: {REINDEX}"
        raise ShardError(shard.location, None, reason, "checksum")
    return index


def _refuse_repeats(repeated: RepeatedKeys, shards: Sequence[ShardFile], cache: tuple[str, int]) -> None:
    count, pair = 0, None
    for repeat in repeated.pairs():
        count += 1
        pair = repeat if pair is None else min(pair, repeat, key=lambda places: places[1])
    if pair is None:
        return
    first, second = (shards[place.shard] for place in pair)
    key = scan_file(fetch(second, cache)).keys[pair[1].example]
    raise RepeatedIdError(
        f"the id {key!r} occurs twice: example number {pair[0].example} of {first.location} and example "
        f"number {pair[1].example} of {second.location}{f' ({count - 1} more ids do)' if count > 1 else ''}; "
        "give one of the shards only, or other ids"
    )
