"""The first rows of a foreign source as examples, before anything is imported."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from v1lit.data.example import Example
from v1lit.data.importing.box_format import BoxFormat
from v1lit.data.importing.format import Format, Reading
from v1lit.data.importing.images import ImageFolder
from v1lit.data.importing.parts import Part, find_parts, folder_of
from v1lit.data.importing.rows import BadRow, Row, read_span, spans
from v1lit.data.importing.run import read_row
from v1lit.paths import expand_path


def preview(
    form: Format,
    source: str | Path,
    n: int,
    *,
    images: str | Path | None = None,
    boxes: BoxFormat | None = None,
    split: str | None = None,
) -> Iterator[Example | str]:
    """Up to `n` examples from the first rows of a source; for a row that gives none, the reason.

    The other arguments are those of `import_rows`. Raises ValueError for a source that is not in the format.
    """
    source = expand_path(source)
    parts, _ = find_parts(form, source, split)
    folder = ImageFolder(Path(expand_path(images)) if images is not None else folder_of(source, parts))
    return islice(_examples(form, next(iter(parts.values())), folder, boxes or form.boxes, n), n)


def _examples(
    form: Format, part: Part, images: ImageFolder, boxes: BoxFormat, n: int
) -> Iterator[Example | str]:
    for name, rows in _rows(form, part, n):
        reading = Reading(f"{form.name}:{name}", images, boxes)
        for reading.row, row in enumerate(rows):
            if isinstance(row, BadRow):
                yield f"row {reading.row} of {name}: {row.reason}"
                continue
            for result in read_row(form, reading, row):
                yield result.example or f"row {reading.row} of {name}: {result.reason}"


def _rows(form: Format, part: Part, n: int) -> Iterator[tuple[str, Iterator[Row | BadRow]]]:
    """Names of files, each with its first rows."""
    if part.rows is not None:
        yield part.name(part.files[0]), part.rows()
        return
    for path in part.files:
        for span in spans(path, max(1, n))[:1]:
            yield part.name(path), read_span(path, span, form.columns)
