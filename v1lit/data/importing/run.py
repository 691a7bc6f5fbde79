"""Import rows of any format into shards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from v1lit.console import Console, screen
from v1lit.data.example import ExampleError
from v1lit.data.importing import job
from v1lit.data.importing.box_doubts import BoxTally
from v1lit.data.importing.box_format import BoxFormat
from v1lit.data.importing.format import Format, Reading
from v1lit.data.importing.images import ImageFolder
from v1lit.data.importing.job import Job, RowResult, Unit
from v1lit.data.importing.parts import find_parts, folder_of, plan_of, units_of
from v1lit.data.importing.report import ImportReport, total
from v1lit.data.importing.rows import BadRow, Row, read_span
from v1lit.data.reasons import listed_in, most_frequent
from v1lit.data.shards import read_index
from v1lit.paths import expand_path
from v1lit.processes import available_cores, progress_bar

log = logging.getLogger(__name__)


def import_rows(
    form: Format,
    source: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    boxes: BoxFormat | None = None,
    split: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    max_examples_per_shard: int = 1000,
    progress: bool = True,
) -> ImportReport:
    """Import rows into WebDataset shards.

    Writes shards, `index.json` and `rejected.jsonl` (an object with `id`, `file`, `row` (counted from 0) and
    `reason` for each rejected row) into `out`, or into one folder per split inside of it (out/train, out/val)
    where the source is a folder with splits. Started again after it was killed, it resumes; the result has
    the same bytes, whatever the number of workers. Of examples with one id the first good one is accepted,
    over all files and splits.

    Args:
        form: of the rows; `v1lit.data.formats.registry.get_format` has them by name.
        source: a file, a folder of files, or a dataset on the Hugging Face hub ("owner/name").
        images: the folder below which images that rows name are; that of the source when None.
        boxes: what the numbers of boxes mean; the format's own when None.
        split: import only this split.
        workers: number of processes; None for one per available core.
        overwrite: replace an import that `out` holds already.
        max_examples_per_shard: also about the number of rows that a killed import does again per worker.
        progress: show a progress bar on stderr.

    Raises ValueError where there is nothing to import, the rows are not in the format, or `out` holds
    something else.
    """
    workers = _checked_workers(workers, max_examples_per_shard)
    source, out, boxes = expand_path(source), Path(expand_path(out)), boxes or form.boxes
    parts, ignored = find_parts(form, source, split)
    if None not in parts and (out / "index.json").exists():
        raise ValueError(
            f"{out} is itself a folder of shards, and {source} has splits: choose another folder"
        )
    console = screen(stderr=True, quiet=not progress)
    if ignored:
        console.print(f"not imported, because they belong to no split: {', '.join(ignored)}")
    folder = ImageFolder(Path(expand_path(images)) if images is not None else folder_of(source, parts))
    read, most = partial(read_unit, form, folder, boxes), max_examples_per_shard
    # All checked before any work.
    given = None if images is None else str(images)
    plans = {name: plan_of(form, part, boxes, given, most) for name, part in parts.items()}
    reports: dict[str | None, ImportReport] = {}
    taken: dict[str, str] = {}
    for name, part in parts.items():
        place = out if name is None else out / name
        task = Job(place, partial(units_of, part, most), plans[name], read, most, dict(taken))
        reports[name] = _import_folder(task, name, boxes, workers, overwrite, console)
        if len(parts) > 1 and name != list(parts)[-1]:
            taken |= dict.fromkeys(job.ids_of(place), f"the split {name!r}")
    return total(reports, out, ignored)


def _checked_workers(workers: int | None, max_examples_per_shard: int) -> int:
    workers = workers if workers is not None else available_cores()
    if workers < 1 or max_examples_per_shard < 1:
        raise ValueError(
            "workers and max_examples_per_shard must be at least 1, "
            f"given {workers} and {max_examples_per_shard}"
        )
    return workers


def read_unit(
    form: Format, images: ImageFolder, boxes: BoxFormat, unit: Unit, tally: BoxTally
) -> Iterator[RowResult]:
    """What becomes of the rows of a unit."""
    reading = Reading(f"{form.name}:{unit.file}", images, boxes, tally=tally)
    rows = read_span(Path(unit.path), unit.span, form.columns)
    for reading.row, row in enumerate(rows, start=unit.first_row):
        if isinstance(row, BadRow):
            yield RowResult(reading.row, row.id, reason=row.reason)
        else:
            yield from read_row(form, reading, row)


def read_row(form: Format, reading: Reading, row: Row) -> Iterator[RowResult]:
    """The examples of a row, or why there are none."""
    id = row["id"] if isinstance(row.get("id"), str) else None
    try:
        for example in form.read(row, reading):
            yield RowResult(reading.row, example.id, example=example)
    except ExampleError as error:
        yield RowResult(reading.row, id, reason=error.reason)
    except ValueError as error:
        yield RowResult(reading.row, id, reason=str(error))


def _import_folder(
    task: Job, name: str | None, boxes: BoxFormat, workers: int, overwrite: bool, console: Console
) -> ImportReport:
    done = job.is_finished(task, overwrite=overwrite)
    if not done:
        doing = f"importing {name or task.out.name}"
        job.run(task, workers, lambda rows: progress_bar(doing, rows, not console.quiet, "rows"))
    index = read_index(task.out)
    shards = len(index["shards"])
    message = f"{task.out}: {index['examples']} examples, {index['rejected']} rejected, {shards} shards"
    message += " (this import was finished before: nothing to do)" if done else ""
    reasons = most_frequent(listed_in(task.out / job.REJECTED_NAME))
    message += "".join(f"\n  {count} x {reason}" for reason, count in reasons)
    if reasons:
        message += f"\n  all of them are listed in {task.out / job.REJECTED_NAME}"
    doubts = _doubts(index.get("boxes"), boxes)
    message += "".join(f"\n  beware: {doubt}" for doubt in doubts)
    log.info(message)
    console.print(message, soft_wrap=True)
    return ImportReport(
        index["examples"], index["rejected"], shards, done, task.out, reasons=tuple(reasons), doubts=doubts
    )


def _doubts(counted: dict[str, Any] | None, boxes: BoxFormat) -> tuple[str, ...]:
    tally = BoxTally()
    if counted is not None:
        tally.merge(counted)
    return tuple(tally.doubts(boxes))
