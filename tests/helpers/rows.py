"""Rows of foreign formats as files, with pictures beside them, and what their import makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from helpers.v1g_cases import examples, jpeg
from v1lit.data.example import Example
from v1lit.data.formats.registry import get_format
from v1lit.data.importing.preview import preview
from v1lit.data.importing.report import ImportReport
from v1lit.data.importing.run import import_rows

WIDE, HIGH = (60, 40), (30, 50)
"""Sizes of the two pictures, width and height in pixels."""


def picture(folder: Path, name: str = "wide.jpg", size: tuple[int, int] = WIDE) -> str:
    """Writes a picture; returns its name."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(jpeg(*size))
    return name


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as the suffix says: .json, .jsonl, .parquet, or .arrow in batches of two rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
        return path
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def import_as(name: str, source: Path, out: Path, **options: Any) -> ImportReport:
    """An import in one process, without a progress bar; `v1lit data show` has the same of the rows."""
    form = get_format(name)
    report = import_rows(form, source, out, **({"workers": 1, "progress": False} | options))
    looks = {key: options[key] for key in ("images", "boxes", "split") if key in options}
    shown = [one for one in preview(form, source, 1000, **looks) if isinstance(one, Example)]
    part = next(iter(report.splits.values()), report)  # the first split is shown
    found = examples(part.folder) if part.accepted else []
    assert {one.id: one.messages for one in shown} == {one.id: one.messages for one in found}
    return report
