"""What a source holds, by split: its files, the units of their rows, and the plan that names them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from v1lit.data.importing.box_format import BoxFormat
from v1lit.data.importing.find import canonical_split, find_source
from v1lit.data.importing.format import Format, Gathered
from v1lit.data.importing.job import Unit
from v1lit.data.importing.rows import LINES, PARQUET, Row, columns_of, fingerprint, spans
from v1lit.files import aside

GATHERED_NAME = "gathered.jsonl"


@dataclass(frozen=True)
class Part:
    """What goes into one folder: files of rows, or what rows are gathered from."""

    files: Sequence[Path]
    root: Path
    """Names of files are relative to it."""
    rows: Callable[[], Iterator[Row]] | None = None

    def name(self, path: Path) -> str:
        """Name of a file for people."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name


def find_parts(
    form: Format, source: str | Path, split: str | None = None
) -> tuple[dict[str | None, Part], tuple[str, ...]]:
    """What a source holds, by split, and the files of it that belong to none.

    Raises ValueError where it holds nothing, or nothing of that split.
    """
    path = Path(source)
    if path.is_file() and path.suffix not in form.suffixes:
        allowed = ", ".join(form.suffixes)
        raise ValueError(
            f"{source} ends in {path.suffix or 'no suffix'!r}; rows of {form.name} are in {allowed}"
        )
    gathered = form.gather(path) if form.gather is not None and path.exists() else None
    if gathered is None:
        found = find_source(source, split, form.suffixes)
        return {name: Part(files, found.root) for name, files in found.splits.items()}, found.ignored
    names = list(gathered.files)
    if split is not None:
        names = [name for name in names if name == canonical_split(split)]
        if not names:
            there = ", ".join(str(name) for name in gathered.files if name is not None) or "no splits"
            raise ValueError(f"{source} has no split {split!r}; it has: {there}")
    return {name: _gathered_part(gathered, name, path) for name in names}, ()


def folder_of(source: str, parts: dict[str | None, Part]) -> Path:
    """The folder of a source, where its images are unless they are said to be elsewhere."""
    path = Path(source)
    return path if path.is_dir() else next(iter(parts.values())).root


def plan_of(
    form: Format, part: Part, boxes: BoxFormat, images: str | None, max_examples: int
) -> dict[str, Any]:
    """What is imported, as plain JSON that is kept with the result. Raises ValueError for another format."""
    files: list[dict[str, Any]] = []
    for path in part.files:
        if path.suffix == PARQUET and form.required:
            names = columns_of(path).names
            if missing := [column for column in form.required if column not in names]:
                raise ValueError(
                    f"{path} is not in the {form.name} format: no column {', '.join(missing)}; it has {names}"
                )
        files.append({"file": part.name(path), "bytes": path.stat().st_size, "sha256": fingerprint(path)})
    return {
        "format": form.name,
        "rules": form.rules,
        "max_examples_per_shard": max_examples,
        "boxes": json.loads(json.dumps(asdict(boxes))),
        "images": images,
        "files": files,
        **json.loads(json.dumps(form.options)),
    }


def units_of(part: Part, most_rows: int, staging: Path) -> list[Unit]:
    """The units of a part; rows that are gathered are written into the folder `staging` first."""
    files = list(part.files) if part.rows is None else [_gather(part.rows, staging / GATHERED_NAME)]
    units: list[Unit] = []
    for path in files:
        first = 0
        name = part.name(path) if part.rows is None else part.name(part.files[0])
        for span in spans(path, most_rows):
            units.append(Unit(f"unit-{len(units):06d}", str(path), name, span, first))
            first += span.rows
    return units


def _gathered_part(gathered: Gathered, split: str | None, source: Path) -> Part:
    root = source if source.is_dir() else source.parent
    return Part(gathered.files[split], root, partial(gathered.rows, split))


def _gather(rows: Callable[[], Iterator[Row]], path: Path) -> Path:
    """Rows that are put together, as JSON lines; written once."""
    assert path.suffix == LINES
    if not path.exists():
        with aside(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    return path
