"""Rows in the v1g format, their import, and what became of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from v1lit.data.example import Example
from v1lit.data.formats.registry import get_format
from v1lit.data.importing.report import ImportReport
from v1lit.data.importing.run import import_rows
from v1lit.data.loading.dataset import ShardDataset

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
        ("regions", pa.string()),
        ("image_size", pa.list_(pa.int64())),
        ("num_tokens", pa.int64()),
    ]
)


def jpeg(width: int = 60, height: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 90, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


PHOTO = jpeg()


def row(id: str | None, **changes: Any) -> dict[str, Any]:
    gpt = '<think> detect(query="it", objects=["<obj1><|region_1|>"]) </think><answer>yes</answer>'
    fields: dict[str, Any] = {
        "id": id,
        "image": {"bytes": PHOTO, "path": "x.jpg"},
        "conversations": [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": gpt}],
        "regions": '{"<|region_1|>": [1, 2, 30, 40]}',
        "image_size": [60, 40],
        "num_tokens": 100,
    }
    return fields | changes


def write(path: Path, rows: list[dict[str, Any]], group: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), path, row_group_size=group)
    return path


def numbered(count: int, prefix: str = "row") -> list[dict[str, Any]]:
    return [row(f"{prefix}_{number}") for number in range(count)]


def import_v1g(source: Path | str, out: Path, **options: Any) -> ImportReport:
    return import_rows(get_format("v1g"), source, out, **options)


def run(source: Path | str, out: Path, **options: Any) -> ImportReport:
    return import_v1g(source, out, **({"workers": 1, "progress": False} | options))


def rejected(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


def examples(folder: Path) -> list[Example]:
    return list(ShardDataset(folder, shuffle=False))


def ids(folder: Path) -> list[str]:
    return [example.id for example in examples(folder)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
