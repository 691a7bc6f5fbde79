"""Second pass of resharding: which examples make which shard, and writing one shard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from v1lit.data.errors import ShardError
from v1lit.data.shards import Shard, ShardInfo, ShardWriter, sidecar_name
from v1lit.data.shards.open_shards import OpenShards
from v1lit.data.shards.staging import RECORD_NAME, StagedFolder
from v1lit.data.tools.content import fetch
from v1lit.data.tools.find import Finding, ShardFile
from v1lit.data.tools.reshard_permutation import Permutation
from v1lit.data.tools.reshard_table import ExampleTable
from v1lit.files import write_atomically

BUFFER_BYTES = 64 * 2**20
"""Examples that a process reads before it writes them, in the order in which they lie on the disk."""
INPUT_CACHE_BYTES = 2**62
"""Remote inputs are kept until the end: in a shuffle every output needs all of them."""
UNITS = "shards"
"""Folder of the output shards, until all are there."""
_CHUNK = 2**18
_RECORD = 10240
"""A tar file is a whole number of these, and at least 1024 bytes longer than its content."""


def order(table: ExampleTable, seed: int | None, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Rows of the table that stand at the positions `start` to `stop` of the output."""
    positions = np.arange(start, stop)
    return positions if seed is None else Permutation(seed, len(table.rows))(positions)


def cut(table: ExampleTable, seed: int | None, max_examples: int, max_bytes: int) -> list[int]:
    """Position where each output shard starts, and the end: `[shards + 1]`.

    A shard has `max_examples` examples and `max_bytes` bytes at most; only one example that is larger by
    itself gets a larger shard, alone.
    """
    limit = max_bytes // _RECORD * _RECORD - 1024
    cuts, examples, size = [0], 0, 0
    for start in range(0, len(table.rows), _CHUNK):
        rows = order(table, seed, start, min(start + _CHUNK, len(table.rows)))
        sizes = table.rows["end"][rows] - table.rows["start"][rows]
        for position, more in enumerate(sizes.tolist(), start):
            if examples and (examples == max_examples or size + more > limit):
                cuts.append(position)
                examples, size = 0, 0
            examples += 1
            size += more
    return [*cuts, len(table.rows)] if len(table.rows) else [0]


class InputShards:
    """What a process needs to write shards: the table of all examples, and the shards that they are in.

    Sent to other processes, it opens both there.
    """

    def __init__(self, staged: StagedFolder) -> None:
        self.staged, plan = staged, staged.plan
        self.table = ExampleTable.load(staged.path)
        self.seed: int | None = plan["shuffle"]
        self._skip = plan["on_bad"] == "skip"
        self._locations = [location for location, *_ in plan["inputs"]]
        self._cache = (str(staged.path / "inputs"), INPUT_CACHE_BYTES)
        self._shards = OpenShards(self._open)

    def _open(self, shard_index: int) -> Shard:
        location = self._locations[shard_index]
        path = fetch(ShardFile(location), self._cache)
        return Shard(path, name=location, index=self.table.index(shard_index))

    def read(self, rows: npt.NDArray[np.int64]) -> Iterator[bytes | Finding]:
        """The bytes of the examples in some rows of the table, in this order, or why they are left out."""
        records = self.table.rows[rows]
        sizes = records["end"] - records["start"]
        batches = (np.cumsum(sizes) - sizes) // BUFFER_BYTES
        for batch in np.unique(batches):
            places = np.flatnonzero(batches == batch)
            as_on_disk = places[np.lexsort((records["start"][places], records["shard"][places]))]
            read = {int(n): self._read_one(int(rows[n]), int(records["shard"][n])) for n in as_on_disk}
            for n in places:
                yield read.pop(int(n))

    def _read_one(self, row: int, shard_index: int) -> bytes | Finding:
        index = row - int(self.table.starts[shard_index])
        try:
            shard = self._shards.get(shard_index)
            shard.example(index)
            return shard.raw(index)
        except ShardError as error:
            if not self._skip:
                raise
            return Finding.of(error)

    def __reduce__(self) -> tuple[type[InputShards], tuple[StagedFolder]]:
        return type(self), (self.staged,)


def unit_name(shard_index: int) -> str:
    """Name of the unit of one output shard."""
    return f"{UNITS}/{shard_index:06d}"


def has_size(folder: Path, shard: ShardInfo) -> bool:
    """Whether a shard and its sidecar are there, by their size: hashing 10 TB again would take hours."""
    path = folder / shard.file
    sized = path.is_file() and path.stat().st_size == shard.bytes
    return sized and (folder / sidecar_name(shard.file)).is_file()


def write_shard(output: tuple[int, int, int], inputs: InputShards) -> int:
    """Write one output shard, and its record; returns its number of examples. Raises ShardError.

    `output`: index of the shard, position in the output of its first example, and behind its last one.
    """
    skipped: list[Finding] = []
    shard_index, start, stop = output
    size = stop - start
    with inputs.staged.unit(unit_name(shard_index)) as unfinished:
        with ShardWriter(unfinished, max_examples=size, max_bytes=2**62, unique="shard") as writer:
            for data in inputs.read(order(inputs.table, inputs.seed, start, stop)):
                if isinstance(data, Finding):
                    skipped.append(data)
                else:
                    writer.write_raw(data)
        record = {"shards": list(map(asdict, writer.shards)), "skipped": list(map(asdict, skipped))}
        write_atomically(unfinished / RECORD_NAME, json.dumps(record))
    return size - len(skipped)
