"""`LengthTable`: the lengths of all examples of some shards, in a file that is mapped into memory."""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v1lit.files import aside

COLUMNS = {"tokens": "<u4", "image_tokens": "<u4", "images": "<u2"}
"""Columns of a table, and their types in the words of numpy."""
_METADATA = "v1lit_lengths"
_IN_FILE = {"<u4": "U32", "<u2": "U16"}
"""Types of numpy, and their names in a safetensors file."""


@dataclass(frozen=True, eq=False)
class LengthTable:
    """Lengths of the examples of one source: its shards as listed, each from its beginning.

    A loaded table is mapped from its file, not read into memory: the processes of one machine share one copy,
    and memory is taken only for the parts that are used. Pickled (as for a spawned worker) it is the path,
    which the other process maps again; a table that was never saved is pickled whole.
    """

    tokens: npt.NDArray[np.uint32]
    """`[examples]`; 0 for one that cannot be read or encoded, `LEFT_OUT` for one that the map leaves out."""
    image_tokens: npt.NDArray[np.uint32]
    """`[examples]`."""
    images: npt.NDArray[np.uint16]
    """`[examples]`."""
    fingerprint: str
    """Names the processor, encoding and map that it was measured with."""
    _file: tuple[Path, int] | None = field(default=None, repr=False)
    """Path and CRC-32 of a mapped table."""

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def join(cls, tables: Sequence[LengthTable], fingerprint: str) -> LengthTable:
        """Tables of the same fingerprint, one behind another, as one in memory."""
        columns: dict[str, Any] = {
            name: np.concatenate([np.zeros(0, dtype), *(getattr(table, name) for table in tables)])
            for name, dtype in COLUMNS.items()
        }
        return cls(**columns, fingerprint=fingerprint)

    def save(self, path: str | Path) -> None:
        """Write the table as safetensors, aside and then renamed. Raises OSError where it cannot."""
        from safetensors.numpy import save_file

        path = Path(path)
        about = {
            "fingerprint": self.fingerprint,
            "examples": len(self),
            "crc32": _crc32(self._columns()),
        }
        with aside(path) as unfinished:
            # One entry: the order of several would change from run to run.
            save_file(self._columns(), unfinished, {_METADATA: json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path, fingerprint: str, examples: int | None = None) -> LengthTable:
        """Map a saved table; its data are read through once, to check them.

        Raises ValueError, naming the file, where it is missing or damaged, was measured with another
        tokenizer or other options (another fingerprint), or is not about this many `examples`.
        """
        table = cls._map(Path(path))
        if table.fingerprint != fingerprint:
            raise ValueError(
                f"{path} holds lengths for another tokenizer or other image or encoding options (fingerprint "
                f"{table.fingerprint}, needed {fingerprint}): measure them again"
            )
        if examples is not None and len(table) != examples:
            raise ValueError(
                f"{path} holds the lengths of {len(table)} examples, but the source has {examples}: measure "
                "them again"
            )
        if table._file is None or _crc32(table._columns()) != table._file[1]:
            raise ValueError(f"{path} is damaged (wrong checksum): delete it and measure the lengths again")
        return table

    @classmethod
    def _map(cls, path: Path) -> LengthTable:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as opened:  # Checks that header and file fit each other.
                about = json.loads(opened.metadata()[_METADATA])
            with open(path, "rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            start = 8 + int.from_bytes(data[:8], "little")
            header = json.loads(data[8:start])
            examples = about["examples"]
            columns = {}
            for name, dtype in COLUMNS.items():
                where = header[name]
                if where["shape"] != [examples] or where["dtype"] != _IN_FILE[dtype]:
                    raise ValueError(f"{name} has {where['dtype']} {where['shape']}")
                first = start + where["data_offsets"][0]
                columns[name] = np.frombuffer(data, dtype, examples, first)
            return cls(**columns, fingerprint=about["fingerprint"], _file=(path.absolute(), about["crc32"]))
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"{path} is not a usable table of lengths ({type(error).__name__}: {error}): delete it and "
                "measure the lengths again"
            ) from error

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        return {name: np.ascontiguousarray(getattr(self, name), dtype) for name, dtype in COLUMNS.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        if self._file is None:
            return type(self), (self.tokens, self.image_tokens, self.images, self.fingerprint)
        return _map_again, (*self._file, self.fingerprint)


def _map_again(path: Path, crc32: int, fingerprint: str) -> LengthTable:
    table = LengthTable._map(path)
    if table._file != (path, crc32) or table.fingerprint != fingerprint:
        raise ValueError(f"{path} was replaced by another table while it was in use: start again")
    return table


def _crc32(columns: dict[str, npt.NDArray[Any]]) -> int:
    crc = 0
    for column in columns.values():
        crc = zlib.crc32(column.data, crc)
    return crc
