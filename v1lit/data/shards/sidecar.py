"""`ShardIndex`: where each example of a shard lies, and its checksum; a small file beside the shard.

    shard-000000.tar     shard-000000.index.safetensors
        offsets  int64  [examples + 1]   byte of the first tar header of each example, then the last's end
        crc32    uint32 [examples]       of the bytes from one offset to the next

With it an example is read by one access, and nothing has to be scanned first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from v1lit.data.errors import ShardError
from v1lit.data.shards.tar import BLOCK

SIDECAR_VERSION = 1
SUFFIX = ".index.safetensors"
MAX_SIDECAR_BYTES = 2**28
MAX_HEADER_BYTES = 2**20
"""Of a sidecar's header: names, shapes, and at most a hundred problems of the shard."""


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where the examples of one shard lie.
    Raises ValueError for other types or lengths, or offsets that do not start at 0, do not grow, or no tar
    file can have.
    """

    offsets: npt.NDArray[np.int64]
    """`[examples + 1]` int64, bytes from the start of the file."""
    crc32: npt.NDArray[np.uint32]
    """`[examples]` uint32, `zlib.crc32` of the bytes `offsets[n]` to `offsets[n + 1]`."""

    def __post_init__(self) -> None:
        if reason := _problem(self.offsets, self.crc32):
            raise ValueError(reason)

    def __len__(self) -> int:
        return len(self.crc32)

    def to_bytes(self, record: Mapping[str, Any] | None = None) -> bytes:
        """Content of the sidecar file. `record`: what else to keep in it, as JSON (see `read_record`)."""
        # One entry: the order of several in the header would change from run to run.
        header = {"version": SIDECAR_VERSION, **({"record": dict(record)} if record is not None else {})}
        arrays: dict[str, npt.NDArray[Any]] = {"offsets": self.offsets, "crc32": self.crc32}
        return save(arrays, {"v1lit_shard_index": json.dumps(header, sort_keys=True)})


def _problem(offsets: npt.NDArray[np.int64], crc32: npt.NDArray[np.uint32]) -> str | None:
    if offsets.dtype != np.int64 or crc32.dtype != np.uint32 or offsets.ndim != 1 or crc32.ndim != 1:
        return "offsets must be int64 [examples + 1] and crc32 uint32 [examples]"
    if len(offsets) != len(crc32) + 1:
        return f"{len(offsets)} offsets do not fit to {len(crc32)} checksums"
    if offsets[0] != 0:
        return f"the first example starts at byte {offsets[0]} instead of 0"
    # Compared, not subtracted: differences of hostile numbers would overflow.
    wrong = np.flatnonzero((offsets[1:] <= offsets[:-1]) | (offsets[1:] % BLOCK != 0))
    if len(wrong):
        index = int(wrong[0])
        return f"example {index} cannot reach from byte {offsets[index]} to {offsets[index + 1]}"
    return None


def read_shard_index(
    data: bytes, *, shard: str = "", examples: int | None = None, size: int | None = None
) -> ShardIndex:
    """Parse the content of a sidecar file. Nothing in it is trusted.

    Args:
        data: the content.
        shard: what errors call the shard.
        examples, size: how many examples and bytes the shard has, where known.

    Raises ShardError where the content is damaged, of another kind or version, has impossible offsets, or
    counts other examples.
    """
    try:
        index = _parse(data)
        if examples is not None and len(index) != examples:
            raise ValueError(f"it has {len(index)} examples, but index.json says {examples}")
        if size is not None and index.offsets[-1] > size:
            raise ValueError(f"it reaches to byte {index.offsets[-1]}, but the shard has {size} bytes")
    except ValueError as error:
        reason = f"its index cannot be used: {error}; index it again with `v1lit data index`"
        raise ShardError(shard, None, reason) from error
    return index


def _parse(data: bytes) -> ShardIndex:
    _header(data)
    try:
        arrays = load(data)
    except Exception as error:  # The library has its own kind, which is no ValueError.
        raise ValueError(f"not a readable file of this kind ({error})") from error
    if set(arrays) != {"offsets", "crc32"}:
        raise ValueError(f"it holds {', '.join(sorted(arrays)) or 'nothing'}, not offsets and crc32")
    return ShardIndex(arrays["offsets"], arrays["crc32"])


def read_record(data: bytes) -> dict[str, Any]:
    """The `record` of a sidecar file, empty if it has none. ValueError where it is no such file."""
    record = _header(data).get("record", {})
    return record if isinstance(record, dict) else {}


def _header(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_SIDECAR_BYTES:
        raise ValueError(f"more than {MAX_SIDECAR_BYTES} bytes")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"not a readable file of this kind (a header of {length} bytes)")
    try:
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["v1lit_shard_index"])
        version = header["version"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise ValueError(f"not a readable file of this kind ({type(error).__name__})") from error
    if version != SIDECAR_VERSION:
        raise ValueError(f"version {version!r}, this version of v1lit reads {SIDECAR_VERSION}")
    return header
