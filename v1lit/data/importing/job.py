"""Import units of rows into a folder of shards: parallel, resumable, with the same bytes however it went.

A unit is a run of rows that one process reads, checks and writes to shards of its own (`StagedFolder`). When
all are there, ids that come again are taken out, and the shards move to their places:

    OUT/.import/unit-000000/         record.json and shards
    OUT/.import/final.json           which shard goes where
    OUT/shard-000000.tar ...  OUT/rejected.jsonl  OUT/index.json
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from v1lit.data.example import Example
from v1lit.data.importing.box_doubts import BoxTally
from v1lit.data.importing.rows import Span
from v1lit.data.shards import (
    INDEX_NAME,
    Shard,
    ShardInfo,
    ShardWriter,
    list_shards,
    read_index,
    verify_shard,
)
from v1lit.data.shards.staging import RECORD_NAME, StagedFolder
from v1lit.files import write_atomically
from v1lit.processes import count_workers, ordered

Advance = Callable[[int], None]

STAGING = ".import"
REJECTED_NAME = "rejected.jsonl"
_OWN_NAME = re.compile(r"shard-\d+\.(tar|index\.safetensors)|index\.json|rejected\.jsonl|\.import|\..*\.tmp")


@dataclass(frozen=True)
class Unit:
    """Rows that one process imports: a span of one file, whose first row is `first_row`."""

    name: str
    path: str
    file: str
    """The file for people."""
    span: Span
    first_row: int


@dataclass(frozen=True)
class RowResult:
    """What became of a row: an example, or the reason why there is none."""

    row: int
    id: str | None
    example: Example | None = None
    reason: str | None = None


Reader = Callable[[Unit, BoxTally], Iterator[RowResult]]
"""Reads the rows of a unit, and counts their boxes; can be sent to other processes."""


@dataclass(frozen=True)
class Job:
    """One folder to be made."""

    out: Path
    units: Callable[[Path], list[Unit]]
    """Makes the units, once the folder is known to be free; rows that are gathered first go into the staging
    folder that it is given."""
    plan: dict[str, Any]
    """Plain JSON that says what is imported and how; the same plan makes the same bytes."""
    read: Reader
    max_examples: int
    taken: Mapping[str, str]
    """Ids that must not come again -> where they were used, for people."""

    @property
    def staged(self) -> StagedFolder:
        """The folder under way."""
        return StagedFolder(self.out, STAGING, verify_shard)


def is_finished(job: Job, *, overwrite: bool) -> bool:
    """Whether the folder holds this very import already. Makes the folder ready for `run` if not.

    Raises ValueError where the folder holds another import, finished or not, or other things, unless they may
    be overwritten.
    """
    out, advice = job.out, "choose another folder or allow to overwrite it (overwrite=True)"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, not a folder")
    content = list(out.iterdir()) if out.is_dir() else []
    finished, begun = (out / INDEX_NAME).is_file(), job.staged.plan
    if overwrite and (
        finished or begun is not None or all(_OWN_NAME.fullmatch(path.name) for path in content)
    ):
        _clear(out)
    elif finished:
        if read_index(out).get("import") != job.plan:
            raise ValueError(
                f"{out} holds a finished import of another source or by other options or rules: {advice}"
            )
        job.staged.discard()
        return True
    elif begun is not None:
        if begun != job.plan:
            raise ValueError(
                f"{out} holds an unfinished import of another source or by other options or rules: {advice}"
            )
    elif any(path.name != STAGING for path in content):
        raise ValueError(f"{out} is not empty and holds no import: choose another folder")
    job.staged.begin(json.dumps(job.plan, ensure_ascii=False))
    return False


def run(job: Job, workers: int, progress: Callable[[int], AbstractContextManager[Advance]]) -> None:
    """Import what is missing and complete the folder. `progress` makes a bar for a number of rows."""
    staged = job.staged
    if staged.final is None:
        units = _units(job)
        total = sum(unit.span.rows for unit in units)
        with progress(total) as advance:
            _import_units(job, units, workers, advance)
        _decide(job, units)
    shards = [(move["from"], ShardInfo(**move["shard"])) for move in staged.final["moves"]]
    boxes = staged.final["boxes"]
    counted = {"boxes": boxes} if boxes["boxes"] else {}
    staged.publish(shards, rejected=staged.final["rejected"], **counted, **{"import": job.plan})
    staged.discard()


def _units(job: Job) -> list[Unit]:
    try:
        return job.units(job.staged.path)
    except (
        ValueError
    ):  # The source is not what it should be: nothing was imported, so nothing is left behind.
        job.staged.discard()
        raise


def _import_units(job: Job, units: list[Unit], workers: int, advance: Advance) -> None:
    todo = [unit for unit in units if not job.staged.is_done(unit.name)]
    advance(sum(unit.span.rows for unit in units) - sum(unit.span.rows for unit in todo))
    count = count_workers(workers, len(todo))
    with closing(ordered(_run_unit, todo, count, job.staged, job.read, job.max_examples)) as done:
        for unit, _ in zip(todo, done, strict=True):
            advance(unit.span.rows)


def ids_of(folder: Path) -> Iterator[str]:
    """The ids in a finished folder."""
    for info in list_shards(folder):
        with Shard(folder / info.file) as shard:
            yield from map(unquote, shard.keys)


def _clear(out: Path) -> None:
    (out / INDEX_NAME).unlink(missing_ok=True)  # First: from here on the folder is not complete.
    shutil.rmtree(out / STAGING, ignore_errors=True)
    for path in out.glob("*"):
        if _OWN_NAME.fullmatch(path.name) and path.is_file():
            path.unlink()


# --- units ---


def _run_unit(unit: Unit, staged: StagedFolder, read: Reader, max_examples: int) -> None:
    accepted: dict[str, int] = {}
    tally = BoxTally()
    rejected: list[dict[str, Any]] = []
    with staged.unit(unit.name) as unfinished:
        with ShardWriter(unfinished, max_examples=max_examples) as writer:
            for result in read(unit, tally):
                reason = result.reason
                if result.example is not None:
                    reason = _accept(unit, result.row, result.example, accepted, writer)
                if reason is not None:
                    rejected.append(_rejection(unit, result.row, result.id, reason))
        shards = [asdict(shard) for shard in writer.shards]
        record = {"accepted": accepted, "rejected": rejected, "shards": shards, "boxes": tally.to_json()}
        write_atomically(unfinished / RECORD_NAME, json.dumps(record, ensure_ascii=False))


def _rejection(unit: Unit, row: int, id: str | None, reason: str) -> dict[str, Any]:
    return {"id": id, "file": unit.file, "row": row, "reason": reason}


def _accept(
    unit: Unit, row: int, example: Example, accepted: dict[str, int], writer: ShardWriter
) -> str | None:
    """Write an example; if it cannot be, the reason."""
    if example.id in accepted:
        return _used_by(example.id, f"row {accepted[example.id]} of {unit.file}")
    try:
        writer.write(example)
    except ValueError as error:
        return str(error)
    accepted[example.id] = row
    return None


def _used_by(id: str, where: str) -> str:
    return f"the id {id!r} is already used by {where}"


# --- completing ---


def _decide(job: Job, units: list[Unit]) -> None:
    """Reject ids that came before, and write down which shard gets which name."""
    taken = dict(job.taken)
    rejected: list[dict[str, Any]] = []
    moves: list[dict[str, Any]] = []
    tally = BoxTally()
    for unit in units:
        record = job.staged.record(unit.name)
        tally.merge(record["boxes"])
        again = {id: taken[id] for id in record["accepted"] if id in taken}
        rows = {id: row for id, row in record["accepted"].items() if id not in again}
        taken |= {id: f"row {row} of {unit.file}" for id, row in rows.items()}
        folder, shards = unit.name, record["shards"]
        if again:
            folder = f"{unit.name}-unique"
            shards = _without(job, shards, unit.name, folder, set(again))
        doubles = [
            _rejection(unit, record["accepted"][id], id, _used_by(id, where)) for id, where in again.items()
        ]
        rejected += sorted(record["rejected"] + doubles, key=lambda rejection: rejection["row"])
        for shard in shards:
            place = replace(shard, file=f"shard-{len(moves):06d}.tar")
            moves.append({"from": f"{folder}/{shard.file}", "shard": asdict(place)})
    lines = [json.dumps(rejection, ensure_ascii=False) + "\n" for rejection in rejected]
    write_atomically(job.out / REJECTED_NAME, "".join(lines))
    job.staged.finish({"moves": moves, "rejected": len(rejected), "boxes": tally.to_json()})


def _without(job: Job, shards: list[ShardInfo], source: str, target: str, ids: set[str]) -> list[ShardInfo]:
    """Write the shards of a unit again without some ids."""
    staging = job.staged.path
    shutil.rmtree(staging / target, ignore_errors=True)
    with ShardWriter(staging / target, max_examples=job.max_examples) as writer:
        for info in shards:
            with Shard(staging / source / info.file) as shard:
                for index, key in enumerate(shard.keys):
                    if unquote(key) not in ids:
                        writer.write(shard.example(index))
    return writer.shards
