"""Import the published v1g row format: parquet rows with image, question, grounded trace and boxes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from v1lit.console import Console, screen
from v1lit.data.example import Example, ExampleError, Message
from v1lit.data.example.example import load_json, read_region
from v1lit.data.example.marks import IMAGE_MARKER, escape
from v1lit.data.images import EncodedImage, decode_image, read_header
from v1lit.data.reasons import in_words, listed_in, most_frequent
from v1lit.data.shards import MAX_IMAGE_BYTES, read_index
from v1lit.data.sources import import_job as job
from v1lit.data.sources.import_job import Job, RowResult, Unit
from v1lit.data.sources.parquet_files import ParquetSource, find_source
from v1lit.errors import one_line
from v1lit.grounding.markup import REGION_NAME, find_answers
from v1lit.grounding.region import Region
from v1lit.grounding.trace import parse_trace
from v1lit.paths import expand_path
from v1lit.processes import available_cores, progress_bar

log = logging.getLogger(__name__)

COLUMNS = ("id", "image", "conversations", "regions", "image_size")
RULES_VERSION = 2
"""Raised when the rules change what becomes of a row, so that no import is continued under other rules.

That every readable image is taken did not raise it: earlier imports refused images too narrow for Qwen alone,
listed in their rejected.jsonl, and all other bytes are the same.
"""


@dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    accepted: int
    rejected: int
    """Numbers of rows."""
    shards: int
    """Number of files."""
    already_done: bool
    """True if everything was there before and nothing was done."""
    folder: Path
    """Where the shards are."""
    splits: dict[str, ImportReport] = field(default_factory=dict)
    """A report for each split, where the source has splits; their folders lie inside of `folder`."""
    ignored: tuple[str, ...] = ()
    """Files of the source that belong to no split and were left out."""
    reasons: tuple[tuple[str, int], ...] = ()
    """The most frequent reasons for rejecting rows, each with the number of such rows."""

    @property
    def failed(self) -> str | None:
        """Where nothing came of the rows, of all or of one split, and why; None if it is all right."""
        for part in (*self.splits.values(), self):
            if not part.accepted and (part.rejected or part is self):
                return f"no row came to {part.folder}: {in_words(part.reasons) or 'there are no rows'}"
        return None


def import_v1g(
    source: str | Path,
    out: str | Path,
    *,
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
    the same bytes, whatever the number of workers. Of rows with one id the first good one is accepted, over
    all files and splits.

    Args:
        source: a parquet file, a folder of them, or a dataset on the Hugging Face hub ("owner/name").
        split: import only this split.
        workers: number of processes; None for one per available core.
        overwrite: replace an import that `out` holds already.
        max_examples_per_shard: also about the number of rows that a killed import does again per worker.
        progress: show a progress bar on stderr.

    Raises ValueError where there is nothing to import, the rows are not in the v1g format, or `out` holds
    something else.
    """
    workers = workers if workers is not None else available_cores()
    if workers < 1 or max_examples_per_shard < 1:
        raise ValueError(
            "workers and max_examples_per_shard must be at least 1, "
            f"given {workers} and {max_examples_per_shard}"
        )
    source, out = expand_path(source), Path(expand_path(out))
    parquet = find_source(source, split)
    if None not in parquet.splits and (out / "index.json").exists():
        raise ValueError(
            f"{out} is itself a folder of shards, and {source} has splits: choose another folder"
        )
    console = screen(stderr=True, quiet=not progress)
    if parquet.ignored:
        console.print(f"not imported, because they belong to no split: {', '.join(parquet.ignored)}")
    # All checked before any work.
    plans = {name: _plan(parquet, name, max_examples_per_shard) for name in parquet.splits}
    reports: dict[str | None, ImportReport] = {}
    taken: dict[str, str] = {}
    for name, (plan, units) in plans.items():
        folder = out if name is None else out / name
        task = Job(folder, units, plan, _read_rows, max_examples_per_shard, dict(taken))
        reports[name] = _import_folder(task, name, workers, overwrite, console)
        if len(plans) > 1 and name != list(plans)[-1]:
            taken |= dict.fromkeys(job.ids_of(folder), f"the split {name!r}")
    return _total(reports, out, parquet.ignored)


def _import_folder(
    task: Job, name: str | None, workers: int, overwrite: bool, console: Console
) -> ImportReport:
    done = job.is_finished(task, overwrite=overwrite)
    if not done:
        total = sum(unit.rows for unit in task.units)
        with progress_bar(f"importing {name or task.out.name}", total, not console.quiet, "rows") as advance:
            job.run(task, workers, advance)
    index = read_index(task.out)
    shards = len(index["shards"])
    message = f"{task.out}: {index['examples']} examples, {index['rejected']} rejected, {shards} shards"
    message += " (this import was finished before: nothing to do)" if done else ""
    reasons = most_frequent(listed_in(task.out / job.REJECTED_NAME))
    message += "".join(f"\n  {count} x {reason}" for reason, count in reasons)
    if reasons:
        message += f"\n  all of them are listed in {task.out / job.REJECTED_NAME}"
    log.info(message)
    console.print(message, soft_wrap=True)
    return ImportReport(index["examples"], index["rejected"], shards, done, task.out, reasons=tuple(reasons))


def _total(reports: dict[str | None, ImportReport], out: Path, ignored: tuple[str, ...]) -> ImportReport:
    parts = list(reports.values())
    return ImportReport(
        accepted=sum(part.accepted for part in parts),
        rejected=sum(part.rejected for part in parts),
        shards=sum(part.shards for part in parts),
        already_done=all(part.already_done for part in parts),
        folder=out,
        splits={name: report for name, report in reports.items() if name is not None},
        ignored=ignored,
        reasons=tuple(reason for part in parts for reason in part.reasons),
    )


# --- parquet files ---


def _plan(source: ParquetSource, split: str | None, max_examples: int) -> tuple[dict[str, Any], list[Unit]]:
    """What is imported (plain JSON, kept with the result), and the units of work."""
    files: list[dict[str, Any]] = []
    units: list[Unit] = []
    for path in source.splits[split]:
        name = source.name(path)
        groups = _row_groups(path)
        files.append(
            {"file": name, "rows": sum(groups), "bytes": path.stat().st_size, "end_sha256": _end_sha256(path)}
        )
        for first_group, last_group in _bundles(groups, max_examples):
            units.append(
                Unit(
                    name=f"unit-{len(units):06d}",
                    path=str(path),
                    file=name,
                    row_groups=tuple(range(first_group, last_group)),
                    first_row=sum(groups[:first_group]),
                    rows=sum(groups[first_group:last_group]),
                )
            )
    plan = {"format": "v1g", "rules": RULES_VERSION, "max_examples_per_shard": max_examples, "files": files}
    return plan, units


def _row_groups(path: Path) -> list[int]:
    """Rows of each row group. ValueError where the file is not in the v1g format."""
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file ({one_line(error)})") from error
    missing = [column for column in COLUMNS if column not in schema.names]
    if missing:
        raise ValueError(
            f"{path} is not in the v1g format: no column {', '.join(missing)}; it has {schema.names}"
        )
    image = schema.field("image").type
    if not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise ValueError(
            f"{path} is not in the v1g format: image must be a struct of bytes and path, it is {image}"
        )
    return groups


def _bundles(groups: list[int], max_rows: int) -> Iterator[tuple[int, int]]:
    """Row groups [first, last) that together have at most `max_rows` rows, or are one larger group."""
    first = rows = 0
    for index, count in enumerate(groups):
        if index > first and rows + count > max_rows:
            yield first, index
            first, rows = index, 0
        rows += count
    if first < len(groups):
        yield first, len(groups)


def _end_sha256(path: Path) -> str:
    """Checksum of the last 64 KiB, where parquet keeps offsets and statistics of everything else."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16))
        return hashlib.sha256(file.read()).hexdigest()


def _read_rows(unit: Unit) -> Iterator[RowResult]:
    row = unit.first_row
    try:
        with pq.ParquetFile(unit.path) as file:
            batches = file.iter_batches(
                batch_size=64, row_groups=list(unit.row_groups), columns=list(COLUMNS), use_threads=False
            )
            for batch in batches:
                for index in range(batch.num_rows):
                    yield _read_row(batch, index, row, f"v1g:{unit.file}")
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{unit.path} is damaged behind row {row} ({one_line(error)})") from error


def _read_row(batch: pa.RecordBatch, index: int, row: int, source: str) -> RowResult:
    values: dict[str, Any] = {}
    try:
        for column in COLUMNS:
            values[column] = batch.column(column)[index].as_py()
    except UnicodeDecodeError:
        return RowResult(row, values.get("id"), reason=f"{column} holds bytes that are not UTF-8 text")
    id = values["id"] if isinstance(values["id"], str) else None
    try:
        return RowResult(row, id, example=row_to_example(values, source=source))
    except ExampleError as error:
        return RowResult(row, id, reason=error.reason)


# --- rows ---


def row_to_example(row: Mapping[str, Any], *, source: str = "v1g") -> Example:
    """One row of the published format -> Example.

    The human turn becomes the user's message, the gpt turn the assistant's; both keep their words as they
    are. The image stands where the human turn begins, so that any further `<image>` is somebody's word.
    Source: jun297/v1, dataset.py at 5ea4620, lines 118-151.

    Raises ExampleError with the first defect as `.reason`.
    """
    id = row["id"]
    try:
        if id is None or id == "":
            raise ValueError("the row has no id")
        if not isinstance(id, str):
            raise ValueError(f"the id is {id!r}, of type {type(id).__name__}; an id is text")
        human, gpt = _turns(row["conversations"])
        regions = _regions(row["regions"])
        _check_names(human + gpt, regions)
        image = _image(row["image"], row["image_size"])
        answers = find_answers(gpt)
        example = Example(
            id=id,
            images=(image,),
            messages=(
                Message("user", IMAGE_MARKER + escape(human.removeprefix(IMAGE_MARKER), keep_regions=True)),
                Message("assistant", escape(gpt, keep_regions=True)),
            ),
            regions=regions,
            answer=answers[-1].strip() if answers else None,
            source=source,
        )
        _check_calls(example, gpt)
    except ExampleError:
        raise
    except ValueError as error:
        raise ExampleError(str(id), str(error)) from error
    return example


def _turns(conversations: object) -> tuple[str, str]:
    if not isinstance(conversations, list) or not all(isinstance(turn, dict) for turn in conversations):
        raise ValueError(f"conversations must be a list of turns, not {conversations!r:.60}")
    if len(conversations) != 2:
        raise ValueError(f"there are {len(conversations)} turns instead of two (human, gpt)")
    speakers = [turn.get("from") for turn in conversations]
    if speakers != ["human", "gpt"]:
        raise ValueError(
            f"the turns are from {speakers[0]!r} and {speakers[1]!r} instead of 'human' and 'gpt'"
        )
    human, gpt = (turn.get("value") for turn in conversations)
    if not isinstance(human, str) or not human.startswith(f"{IMAGE_MARKER}\n"):
        raise ValueError(
            f"the human turn does not begin with {IMAGE_MARKER} and a new line, but with {human!r:.40}"
        )
    if not isinstance(gpt, str) or not gpt.strip():
        raise ValueError("the gpt turn has no text")
    return human, gpt


def _regions(text: object) -> dict[str, Region]:
    if text is None:
        raise ValueError("regions is missing; it must be a JSON object as text")
    if not isinstance(text, str):
        raise ValueError(f"regions is of type {type(text).__name__}; it must be a JSON object as text")
    try:
        regions = load_json(text, allow_nan=True)  # Region refuses it, naming the region.
    except ValueError as error:
        raise ValueError(f"regions cannot be read: {error}") from error
    if not isinstance(regions, dict):
        raise ValueError(f"regions must be a JSON object, not {type(regions).__name__}")
    return {name: read_region(name, value) for name, value in regions.items()}


def _check_names(text: str, regions: Mapping[str, Region]) -> None:
    for name in REGION_NAME.findall(text):
        if name not in regions:
            names = ", ".join(regions) or "none"
            raise ValueError(f"the text names {name}, but no such region is given; given: {names}")


def _image(value: object, image_size: object) -> EncodedImage:
    data = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(data, bytes):
        path = value.get("path") if isinstance(value, dict) else None
        hint = "" if path is None else f"; its path {path!r} is not followed"
        raise ValueError(f"the image is missing (no bytes){hint}")
    if len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"the image file has {len(data)} bytes, the limit is {MAX_IMAGE_BYTES}")
    image = _checked_image(data)
    if not isinstance(image_size, list):
        kind = type(image_size).__name__
        raise ValueError(
            f"image_size is {image_size!r:.60}, of type {kind}; it must be a list of width and height"
        )
    if tuple(image_size) != image.size:
        raise ValueError(
            f"image_size says {image_size}, but the image is displayed with {list(image.size)} pixels"
        )
    return image


@lru_cache(maxsize=64)  # Neighbouring rows often share an image.
def _checked_image(data: bytes) -> EncodedImage:
    image = read_header(data)
    decode_image(image)
    return image


def _check_calls(example: Example, gpt: str) -> None:
    """Regions are taught where calls name them, so one that is named elsewhere only would be lost."""
    parsed = parse_trace(gpt)
    called = {target.region for call in parsed.trace.calls for target in call.objects}
    for name in example.regions:
        if name not in called:
            reason = f"{name} is named outside of any well-formed detect(...) call only"
            for problem in parsed.problems[:1]:
                reason += f"; {problem.reason}: {gpt[problem.start : problem.end]!r:.80}"
            raise ExampleError(example.id, reason)
