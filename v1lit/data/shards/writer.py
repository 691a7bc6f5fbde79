"""`ShardWriter`: examples to shards, reproducibly, each with its index beside it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from v1lit.data.errors import DamageError
from v1lit.data.example import Example
from v1lit.data.shards.index import ShardInfo, sidecar_name
from v1lit.data.shards.member import counts, pack, unpack
from v1lit.data.shards.sidecar import ShardIndex
from v1lit.data.shards.tar import BLOCK
from v1lit.files import aside, write_atomically
from v1lit.paths import expand_path

_RECORD = 20 * BLOCK
"""A tar file is a whole number of these."""


class ShardWriter:
    """Write examples to `<folder>/shard-000000.tar`, `-000001.tar`, ..., and the index of each beside it.

    The files depend on the examples alone (no times, no user names). A shard gets its name when it is
    complete; inside of a `with` block that ends in an error the unfinished one is removed.

    Args:
        folder: made if missing; must not hold such shards yet.
        max_examples: most examples of a shard.
        max_bytes: most bytes of a shard's file.
        unique: where an id must not come again: in "all" shards of this writer, which keeps all keys in
            memory, or in one "shard".
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_examples: int = 1000,
        max_bytes: int = 512 * 2**20,
        unique: Literal["all", "shard"] = "all",
    ) -> None:
        if max_examples < 1 or max_bytes < 1:
            raise ValueError(
                f"max_examples and max_bytes must be at least 1, given {max_examples} and {max_bytes}"
            )
        if unique not in ("all", "shard"):
            raise ValueError(f'unique must be "all" or "shard", given {unique!r}')
        self.folder, self.unique = Path(expand_path(folder)), unique
        self.max_examples, self.max_bytes = max_examples, max_bytes
        self.shards: list[ShardInfo] = []
        self._keys: set[str] = set()
        self._open: _OpenShard | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        if present := sorted(path.name for path in self.folder.glob("shard-*.tar")):
            raise ValueError(f"{self.folder} already holds shards ({present[0]}, ...): choose another folder")

    def write(self, example: Example) -> None:
        """Append an example.

        Raises ValueError for an id that was written before, or a member larger than a reader would accept.
        """
        data = _packed(example.key, example.to_members())
        self._append(example.key, example.id, data, len(example.images), len(example.regions))

    def write_members(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append an example by its members (kind -> content), as `Shard.members` returns them.

        Names, kinds and sizes are checked, the content is not.

        Raises ValueError as `write` does; also for a name that is no key, or a kind that is not known.
        """
        self.write_raw(_packed(key, members))

    def write_raw(self, data: bytes) -> str:
        """Append an example by its bytes in another shard, as `Shard.raw` returns them; returns its key.

        Raises ValueError for a key that was written before, or bytes that are not one whole example.
        """
        try:
            key, members = unpack(data)
        except DamageError as problem:
            raise ValueError(f"not the bytes of one example: {problem.reason}") from problem
        self._append(key, key, data, *counts(members))
        return key

    def close(self) -> list[ShardInfo]:
        """Finish the last shard; returns all of them."""
        self._finish_shard()
        return self.shards

    def _append(self, key: str, id: str, data: bytes, images: int, regions: int) -> None:
        if self._open is not None and not self._open.fits(data, self.max_examples, self.max_bytes):
            self._finish_shard()
        if key in self._keys:
            raise ValueError(f"the id {id!r} was written before")
        if self._open is None:
            self._open = _OpenShard(self.folder / f"shard-{len(self.shards):06d}.tar")
        self._open.add(data, images, regions)
        self._keys.add(key)

    def _finish_shard(self) -> None:
        if self._open is not None:
            self.shards.append(self._open.finish())
            self._open = None
            if self.unique == "shard":
                self._keys.clear()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._open is not None:
            self._open.cleanup.__exit__(kind, error, trace)
            self._open = None


class _OpenShard:
    """A shard under way, in a file beside its later place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cleanup = ExitStack()
        """Ends the file: renames it, or removes it after an error."""
        self.file = self.cleanup.enter_context(self.cleanup.enter_context(aside(path)).open("wb"))
        self.digest = hashlib.sha256()
        self.offsets: list[int] = [0]
        self.crc32: list[int] = []
        self.images = self.regions = 0

    def fits(self, data: bytes, max_examples: int, max_bytes: int) -> bool:
        return len(self.crc32) < max_examples and self.offsets[-1] + len(data) <= max_bytes

    def add(self, data: bytes, images: int, regions: int) -> None:
        self._write(data)
        self.offsets.append(self.offsets[-1] + len(data))
        self.crc32.append(zlib.crc32(data))
        self.images += images
        self.regions += regions

    def finish(self) -> ShardInfo:
        end = self.offsets[-1] + 2 * BLOCK
        size = (end + _RECORD - 1) // _RECORD * _RECORD
        index = ShardIndex(np.array(self.offsets, dtype=np.int64), np.array(self.crc32, dtype=np.uint32))
        with self.cleanup:
            self._write(bytes(size - self.offsets[-1]))
            # First: a shard that has its name has its index.
            write_atomically(self.path.with_name(sidecar_name(self.path.name)), index.to_bytes())
        return ShardInfo(self.path.name, len(index), self.images, self.regions, size, self.digest.hexdigest())

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)


def _packed(key: str, members: Mapping[str, bytes]) -> bytes:
    try:
        return pack(key, members)
    except DamageError as problem:
        raise ValueError(problem.reason) from problem
