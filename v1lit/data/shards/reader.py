"""`Shard`: the examples of one shard in any order. Nothing in the file, or in its index, is trusted.

WebDataset's own decoders unpickle .pyd and .pth members; this reader never decodes by extension, it returns
bytes of known kinds and refuses everything else.
"""

from __future__ import annotations

import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from v1lit.data.errors import DamageError, ShardError
from v1lit.data.example import Example
from v1lit.data.example.example import load_json
from v1lit.data.images import ImageError
from v1lit.data.shards import member as limits
from v1lit.data.shards.file import RandomAccess
from v1lit.data.shards.member import unpack
from v1lit.data.shards.names import common_keys, is_clutter, possible_keys
from v1lit.data.shards.scan import NEIGHBOURS, scan_headers
from v1lit.data.shards.sidecar import ShardIndex
from v1lit.data.shards.tar import walk
from v1lit.paths import expand_path


class Shard:
    """One shard, opened for reading in any order.

    With an index nothing is read at opening, and an example is one access of the file; its checksum is
    verified. Without, all tar headers are read at opening, but no content. Usable as a context manager, by
    several threads, and after a fork. `len(shard)` is the number of examples.

    Args:
        path: a local file.
        name: what errors call it, such as the URL that the file was fetched from; the path if None.
        index: where the examples lie.

    Raises ShardError where the file cannot be opened; without an index also where it is no uncompressed tar
    file, is damaged or cut off, or has members that belong to no example.
    """

    def __init__(self, path: str | Path, *, name: str | None = None, index: ShardIndex | None = None) -> None:
        self.path = Path(path := expand_path(path))
        self.name = str(path) if name is None else name
        self.index = index
        self._keys: list[str] | None = None
        self._file = RandomAccess(path, self.name)
        if index is not None:
            # Views give plain numbers, at a fraction of what numpy takes for one.
            self._offsets, self._crc32 = index.offsets.data, index.crc32.data
            return
        try:
            scan = scan_headers(self._file.read, self._file.size)
            for problem in scan.problems:
                raise problem.in_shard(self.name) from problem
        except BaseException:
            self._file.close()
            raise
        self._keys, self._offsets = scan.keys, np.array(scan.offsets, dtype=np.int64).data

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def keys(self) -> list[str]:
        """Names of the examples, in order. With an index the headers are read for it. Raises as `key`."""
        if self._keys is None:
            self._keys = [self.key(index) for index in range(len(self))]
        return self._keys

    def key(self, index: int) -> str:
        """Name of one example, without reading its content.

        Raises ShardError where there is no readable tar header where it should be.
        """
        start, _ = self._range(index)
        key = self._find_key(index)
        if key is None:
            raise self._error(DamageError(f"no readable tar header of an example at byte {start}"), index)
        return key

    def raw(self, index: int) -> bytes:
        """The bytes of one example in the file, tar headers included, after the checks of `members`."""
        return self._checked(index)[0]

    def members(self, index: int) -> dict[str, bytes]:
        """Content of the members of one example, by kind ("json", "jpg", "0.jpg", ...).

        Raises ShardError where the bytes have another checksum than the index says, are no whole example, or
        hold a member of unknown kind, too large, or not a plain file.
        """
        return self._checked(index)[2]

    def example(self, index: int) -> Example:
        """One example, checked.

        Raises ShardError as `members`, and where the members do not form a valid example.
        """
        _, key, members = self._checked(index)
        try:
            return Example.from_members(key, members)
        except ValueError as error:
            reason, kind = getattr(error, "reason", str(error)), _kind_of(error, members)
            if kind == "member" and "is missing" in reason:
                reason += f"; {NEIGHBOURS}"
            raise ShardError(self.name, key, reason, kind) from error

    def close(self) -> None:
        """Give the file back. Not needed where the object is just dropped."""
        self._file.close()

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- one example ---

    def _range(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self._offsets) - 1:
            raise IndexError(f"shard {self.name} has {len(self)} examples, there is no number {index}")
        return self._offsets[index], self._offsets[index + 1]

    def _checked(self, index: int) -> tuple[bytes, str, dict[str, bytes]]:
        """Bytes, key and members of one example."""
        try:
            data = self._bytes_of(index)
            if self.index is not None and zlib.crc32(data) != self._crc32[index]:
                raise DamageError("its bytes do not have the checksum that the index says", "checksum")
            return data, *unpack(data)
        except DamageError as problem:
            raise self._error(problem, index) from problem

    def _bytes_of(self, index: int) -> bytes:
        start, end = self._range(index)
        if end > self._file.size:
            raise DamageError(
                f"it should lie at bytes {start} to {end}, but the file ends at {self._file.size}"
            )
        if end - start > limits.MAX_EXAMPLE_BYTES:
            reason = f"it has {end - start} bytes, the limit is {limits.MAX_EXAMPLE_BYTES}"
            raise DamageError(reason, "member")
        data = self._file.read(start, end - start)
        if len(data) < end - start:
            raise DamageError("the file was cut off while it was being read")
        return data

    def _error(self, problem: DamageError, index: int) -> ShardError:
        key = self._find_key(index) if problem.key is None else problem.key
        reason = problem.reason
        if self.index is not None and problem.kind in ("shard", "checksum"):
            reason += (
                f" (example number {index}): the file is damaged, or its index is of another file; "
                "get the file again, or index it again with `v1lit data index`"
            )
        return ShardError(self.name, key, reason, problem.kind)

    def _find_key(self, index: int) -> str | None:
        """The key, as far as it can be read."""
        if self._keys is not None:
            return self._keys[index]
        start, end = self._range(index)
        keys: tuple[str, ...] = ()
        with suppress(DamageError):  # Only the headers matter here, not where the content would end.
            for member in walk(self._file.read, start, sys.maxsize):
                if member.start >= end:
                    break
                if not is_clutter(member):
                    keys = common_keys(keys, member.name) or keys or possible_keys(member.name)
                    if len(keys) < 2:
                        break
        return keys[-1] if keys else None


def _kind_of(error: BaseException, members: dict[str, bytes]) -> str:
    """Which of the `KINDS` an invalid example is."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ImageError):
            return "image"
        cause = cause.__cause__
    return "invalid" if "json" in members and _are_those_named(members) else "member"


def _are_those_named(members: dict[str, bytes]) -> bool:
    """Whether the members are those that the json member names; True where it names none that could be."""
    try:
        kinds = [image["file_ext"].lower() for image in load_json(members["json"])["images"]]
        expected = kinds if len(kinds) == 1 else [f"{index}.{kind}" for index, kind in enumerate(kinds)]
        return {*expected, "json"} == set(members)
    except (ValueError, TypeError, KeyError, AttributeError):
        return True
