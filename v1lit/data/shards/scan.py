"""Going through a whole shard: which examples its tar headers name, and the checksums of its bytes."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from v1lit.data.shards.error import DamageError
from v1lit.data.shards.member import misnamed, split_name
from v1lit.data.shards.tar import BLOCK, Read, walk

_CHUNK = 2**20


@dataclass
class Scan:
    """What the headers of a shard say.

    Attributes:
        keys: of the examples [examples].
        offsets: bytes [examples + 1], as in `ShardIndex`.
        problems: what is wrong. Behind damage nothing is found.
    """

    keys: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    problems: list[DamageError] = field(default_factory=list)


def scan_headers(read: Read, size: int) -> Scan:
    """Read all tar headers of a file of `size` bytes.

    A member whose name belongs to no example counts as an example of its own, which can never be read: then
    the others can.
    """
    scan = Scan()
    keys: set[str] = set()
    end = 0
    try:
        for member in walk(read, 0, size):
            parts = split_name(member.name)
            key = parts[0] if parts else member.name
            if parts is None:
                scan.problems.append(misnamed(member.name))
            if parts is None or not scan.keys or scan.keys[-1] != key:
                if key in keys:
                    scan.problems.append(DamageError("occurs twice", "member", key))
                keys.add(key)
                scan.keys.append(key)
                scan.offsets.append(member.start)
            end = member.end
        _check_end(read, end)
    except DamageError as problem:
        if end == 0:
            problem = DamageError(
                f"not a complete, uncompressed tar file ({problem.reason})", problem.kind, problem.key
            )
        scan.problems.append(problem)
    scan.offsets.append(end)
    return scan


def _check_end(read: Read, end: int) -> None:
    """Behind the last member there must be zeros only, at least two blocks."""
    at = end
    while block := read(at, _CHUNK):
        if block.strip(b"\0"):
            raise DamageError(f"damaged: no readable tar header at byte {end}")
        at += len(block)
    if at - end < 2 * BLOCK:
        raise DamageError("cut off: the end of the archive is missing")


def checksums(read: Read, offsets: Sequence[int], size: int) -> tuple[npt.NDArray[np.uint32], str]:
    """CRC32 from each offset to the next (uint32 [examples]), and SHA-256 of the file of `size` bytes.

    Raises:
        DamageError: the file ends before `size`.
    """
    digest = hashlib.sha256()
    found: list[int] = []
    # The last stretch, behind the examples, has no checksum of its own.
    for start, end in zip(offsets, [*offsets[1:], size], strict=True):
        crc32 = 0
        for at in range(start, end, _CHUNK):
            wanted = min(_CHUNK, end - at)
            if len(block := read(at, wanted)) < wanted:
                raise DamageError("the file was cut off while it was being read")
            digest.update(block)
            crc32 = zlib.crc32(block, crc32)
        found.append(crc32)
    return np.array(found[:-1], dtype=np.uint32), digest.hexdigest()
