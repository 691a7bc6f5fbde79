"""Rows of parquet, Arrow, JSON and JSON lines files: how they are cut into units, and how one is read.

A unit of work covers row groups of a parquet file, batches of an Arrow stream (what `datasets` saves), or
bytes of a text file that begin and end between rows, so that a process reads no more than its own part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from v1lit.data.example.example import load_json
from v1lit.errors import one_line
from v1lit.files import sha256_of

PARQUET, ARROW, JSON, LINES = ".parquet", ".arrow", ".json", ".jsonl"
LONGEST_ROW = 64 * 2**20
"""Bytes of one row of JSON; a longer one is no row of text and boxes."""
LARGEST_JSON = 8 * 2**30
"""Bytes of a JSON file, which is read as a whole to find its rows."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """Rows that belong together in a file."""

    start: int
    stop: int
    """Row groups of a parquet file, batches of an Arrow stream, bytes of a text file."""
    rows: int


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, why, and its id where that could be."""

    reason: str
    id: str | None = None


def spans(path: Path, most_rows: int) -> list[Span]:
    """The rows of a file in spans of at most `most_rows` rows, or of one larger row group.

    Raises ValueError for a file that is none of these.
    """
    if path.suffix == PARQUET:
        return list(_joined([Span(i, i + 1, rows) for i, rows in enumerate(_row_groups(path))], most_rows))
    if path.suffix == ARROW:
        batches = [Span(i, i + 1, batch.num_rows) for i, batch in enumerate(_batches(path))]
        return list(_joined(batches, most_rows))
    pieces = _lines(path) if path.suffix == LINES else _elements(path)
    return list(_joined([Span(start, stop, 1) for start, stop in pieces], most_rows))


def read_span(path: Path, span: Span, columns: tuple[str, ...] | None = None) -> Iterator[Row | BadRow]:
    """The rows of a span, in order; of a parquet file only these columns.

    Raises ValueError where the file is damaged.
    """
    if path.suffix == PARQUET:
        yield from _read_groups(path, span, columns)
        return
    if path.suffix == ARROW:
        for batch in islice(_batches(path), span.start, span.stop):
            yield from (_table_row(batch, index) for index in range(batch.num_rows))
        return
    with open(path, "rb") as file:
        file.seek(span.start)
        data = file.read(span.stop - span.start)
    pieces = data.splitlines() if path.suffix == LINES else _split(path, data)
    yield from (_parse(piece) for piece in pieces if piece.strip())


def fingerprint(path: Path) -> str:
    """Checksum of a file; of parquet that of the last 64 KiB, with offsets and statistics of the rest."""
    if path.suffix != PARQUET:
        return sha256_of(path)
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16))
        return hashlib.sha256(file.read()).hexdigest()


def columns_of(path: Path) -> pa.Schema:
    """The columns of a parquet file. Raises ValueError where it is not readable."""
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file ({one_line(error)})") from error


def _joined(pieces: list[Span], most_rows: int) -> Iterator[Span]:
    """Neighbours put together while they have at most `most_rows` rows."""
    begun: Span | None = None
    for piece in pieces:
        if begun is not None and begun.rows + piece.rows > most_rows:
            yield begun
            begun = None
        begun = piece if begun is None else Span(begun.start, piece.stop, begun.rows + piece.rows)
    if begun is not None:
        yield begun


# --- parquet and Arrow ---


def _row_groups(path: Path) -> list[int]:
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.metadata
            return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file ({one_line(error)})") from error


def _read_groups(path: Path, span: Span, columns: tuple[str, ...] | None) -> Iterator[Row | BadRow]:
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = names if columns is None else [name for name in names if name in columns]
            batches = file.iter_batches(
                batch_size=64,
                row_groups=list(range(span.start, span.stop)),
                columns=wanted,
                use_threads=False,
            )
            for batch in batches:
                for index in range(batch.num_rows):
                    yield _table_row(batch, index)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged behind row {row} of a unit ({one_line(error)})") from error


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow stream, which lie in the file until their rows are asked for."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            yield from stream
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable Arrow stream ({one_line(error)})") from error


def _table_row(batch: pa.RecordBatch, index: int) -> Row | BadRow:
    values: Row = {}
    for column in batch.schema.names:
        try:
            values[column] = batch.column(column)[index].as_py()
        except UnicodeDecodeError:
            return BadRow(f"{column} holds bytes that are not UTF-8 text", values.get("id"))
    return values


# --- text ---


def _lines(path: Path) -> Iterator[tuple[int, int]]:
    start = 0
    with open(path, "rb") as file:
        while line := file.readline(LONGEST_ROW):
            if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
                raise ValueError(f"{path}: the line at byte {start} has more than {LONGEST_ROW} bytes")
            if line.strip():
                yield start, start + len(line)
            start += len(line)


def _elements(path: Path) -> Iterator[tuple[int, int]]:
    """Where the elements of a JSON file's list stand; each comma is part of the element behind it."""
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} has more than {LARGEST_JSON} bytes: write it as JSON lines (.jsonl)")
    text = _as_bytes(path.read_bytes())
    at = _blank(text, 3 if text.startswith("\xef\xbb\xbf") else 0)
    if text[at : at + 1] != "[":
        raise ValueError(f"{path} holds no list of rows; it begins with {text[at : at + 40]!r}")
    at = _blank(text, at + 1)
    first = True
    while text[at : at + 1] != "]":
        start, at = at, _element_start(path, text, at, first)
        at = _blank(text, _end_of(path, text, at))
        first = False
        yield start, at
    if _blank(text, at + 1) != len(text):
        raise ValueError(f"{path}: something follows its list, at byte {at + 1}")


def _split(path: Path, data: bytes) -> Iterator[bytes]:
    text = _as_bytes(data)
    at = 0
    while at < len(text):
        at = _element_start(path, text, at, first=text[at : at + 1] != ",")
        end = _end_of(path, text, at)
        yield data[at:end]
        at = _blank(text, end)


def _as_bytes(data: bytes) -> str:
    """Text with a character for every byte: JSON's marks are ASCII, and positions are those of bytes."""
    return data.decode("latin-1")


def _blank(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\n", "\t", "\r"):
        at += 1
    return at


def _element_start(path: Path, text: str, at: int, first: bool) -> int:
    if first:
        return at
    if text[at : at + 1] != ",":
        raise ValueError(f"{path} is no JSON: expected a comma at byte {at}, found {text[at : at + 20]!r}")
    return _blank(text, at + 1)


def _end_of(path: Path, text: str, at: int) -> int:
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, at)[1]
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON behind byte {at} ({one_line(error)})") from error


def _parse(piece: bytes) -> Row | BadRow:
    try:
        row = load_json(piece)
    except ValueError as error:
        return BadRow(str(error))
    return row if isinstance(row, dict) else BadRow(f"a row is a JSON object, not {type(row).__name__}")
