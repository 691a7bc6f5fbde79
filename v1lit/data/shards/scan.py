"""Going through a whole shard: which examples its tar headers name, and the checksums of its bytes."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from v1lit.data.errors import DamageError
from v1lit.data.shards.compressed import explain_content
from v1lit.data.shards.names import common_keys, is_clutter, kind_of, misnamed, possible_keys
from v1lit.data.shards.tar import BLOCK, Read, TarMember, walk

NEIGHBOURS = "members of an example must be neighbours; `tar --sort=name` puts them together"
_CHUNK = 2**20


@dataclass
class Scan:
    """What the headers of a shard say."""

    keys: list[str] = field(default_factory=list)
    """`[examples]`, names of the examples."""
    offsets: list[int] = field(default_factory=list)
    """`[examples + 1]` bytes from the start of the file, as in `ShardIndex`."""
    problems: list[DamageError] = field(default_factory=list)
    """What is wrong, in order."""
    damage: DamageError | None = None
    """The last problem, if nothing could be found behind it."""
    odd: dict[int, DamageError] = field(default_factory=dict)
    """Problem of each example that can never be read, by its number: a member that belongs to no example,
    or members that stand apart from those of their example."""


def scan_headers(read: Read, size: int) -> Scan:
    """Read all tar headers of a file of `size` bytes.

    A member whose name belongs to no example counts as an example of its own, which can never be read: then
    the others can. Clutter belongs to the example before it.
    """
    scan = Scan()
    examples = _Examples(scan)
    end = 0
    try:
        for member in walk(read, 0, size):
            if not is_clutter(member):
                examples.add(member)
            end = member.end
        examples.close()
        _check_end(read, end)
    except DamageError as problem:
        examples.close()
        if end == 0:
            reason = explain_content(read(0, 8)) or f"({problem.reason})"
            problem = DamageError(f"not a complete, uncompressed tar file {reason}", problem.kind)
        scan.damage = problem
        scan.problems.append(problem)
    scan.offsets.append(end if scan.keys else 0)
    return scan


class _Examples:
    """Puts members together that belong to one example, and notes what is wrong with their names."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self._keys: tuple[str, ...] = ()
        self._names: list[str] = []
        self._seen: dict[str, tuple[str, ...]] = {}
        self._kinds: dict[tuple[str, ...], tuple[str, ...]] = {}

    def add(self, member: TarMember) -> None:
        common = common_keys(self._keys, member.name)
        if not common:
            self.close()
            common = possible_keys(member.name)
            self.scan.offsets.append(member.start if self.scan.keys else 0)
            self.scan.keys.append(member.name)
        if common:
            self._keys = common
            self._names.append(member.name)
        else:
            self._note_odd(misnamed(member.name))

    def close(self) -> None:
        """The members of an example end here: now its name is certain."""
        if not self._keys:
            return
        key = self.scan.keys[-1] = self._keys[-1]
        kinds = tuple(kind_of(name, key) for name in self._names)
        kinds = self._kinds.setdefault(kinds, kinds)  # The same few, for all examples.
        before = self._seen.setdefault(key, ())
        if set(before) & set(kinds):
            self.scan.problems.append(DamageError("occurs twice", "member", key))
        elif before:
            reason = f"its members stand apart ({before[0]} and {kinds[0]}): {NEIGHBOURS}"
            self._note_odd(DamageError(reason, "member", key))
        self._seen[key] = before + kinds if before else kinds
        self._keys, self._names = (), []

    def _note_odd(self, problem: DamageError) -> None:
        self.scan.odd[len(self.scan.keys) - 1] = problem
        self.scan.problems.append(problem)


def _check_end(read: Read, end: int) -> None:
    """Behind the last member there must be zeros only, at least two blocks."""
    at = end
    while block := read(at, _CHUNK):
        if block.strip(b"\0"):
            hint = "" if block[:BLOCK].strip(b"\0") else "; archives are joined with tar -A, not with cat"
            raise DamageError(f"damaged: no readable tar header at byte {end}{hint}")
        at += len(block)
    if at - end < 2 * BLOCK:
        raise DamageError("cut off: the end of the archive is missing")


def checksums(read: Read, offsets: Sequence[int], size: int) -> tuple[npt.NDArray[np.uint32], str]:
    """CRC32 from each offset to the next, `[examples]` uint32, and SHA-256 of the file of `size` bytes.

    Raises DamageError where the file ends before `size`.
    """
    digest = hashlib.sha256()
    crc32s: list[int] = []
    # The last stretch, behind the examples, has no checksum of its own.
    for start, end in zip(offsets, [*offsets[1:], size], strict=True):
        crc32 = 0
        for at in range(start, end, _CHUNK):
            wanted = min(_CHUNK, end - at)
            if len(block := read(at, wanted)) < wanted:
                raise DamageError("the file was cut off while it was being read")
            digest.update(block)
            crc32 = zlib.crc32(block, crc32)
        crc32s.append(crc32)
    return np.array(crc32s[:-1], dtype=np.uint32), digest.hexdigest()
