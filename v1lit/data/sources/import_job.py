"""Import units of rows into a folder of shards: parallel, resumable, with the same bytes however it went.

A unit is a run of rows that one process reads, checks and writes to shards of its own in a hidden folder
inside of OUT. A finished unit has its final name, so a killed import goes on with the units that are missing.
When all are there, ids that come again are taken out, the shards move to their places, and index.json makes
the folder complete:

    OUT/.import/plan.json            what is imported; another source or other options are refused
    OUT/.import/unit-000000/         record.json and shards
    OUT/.import/final.json           which shard goes where; from here on files only move
    OUT/shard-000000.tar  OUT/shard-000000.index.safetensors ...  OUT/rejected.jsonl  OUT/index.json
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from v1lit.data.example import Example
from v1lit.data.shards import (
    INDEX_NAME,
    Shard,
    ShardInfo,
    ShardWriter,
    list_shards,
    read_index,
    sidecar_name,
    verify_shard,
    write_index,
)
from v1lit.files import aside, remove_leftovers, write_atomically
from v1lit.processes import count_workers, ordered

STAGING = ".import"
REJECTED_NAME = "rejected.jsonl"
_OWN_NAME = re.compile(r"shard-\d+\.(tar|index\.safetensors)|index\.json|rejected\.jsonl|\.import|\..*\.tmp")


@dataclass(frozen=True)
class Unit:
    """Rows that one process imports: some row groups of one file, `rows` of them from row `first_row` on."""

    name: str
    path: str
    file: str
    row_groups: tuple[int, ...]
    first_row: int
    rows: int


@dataclass(frozen=True)
class RowResult:
    """What became of a row: an example, or the reason why there is none."""

    row: int
    id: str | None
    example: Example | None = None
    reason: str | None = None


Reader = Callable[[Unit], Iterator[RowResult]]
"""Reads the rows of a unit; a function of a module, because it is sent to other processes."""


@dataclass(frozen=True)
class Job:
    """One folder to be made.

    Attributes:
        plan: plain JSON that says what is imported and how; the same plan makes the same bytes.
        taken: ids that must not come again -> where they were used, for people.
    """

    out: Path
    units: list[Unit]
    plan: dict[str, Any]
    read: Reader
    max_examples: int
    taken: Mapping[str, str]

    @property
    def staging(self) -> Path:
        return self.out / STAGING


def is_finished(job: Job, *, overwrite: bool) -> bool:
    """Whether the folder holds this very import already. Makes the folder ready for `run` if not.

    Raises:
        ValueError: the folder holds another import, finished or not, or other things; unless they may be
            overwritten.
    """
    out, advice = job.out, "choose another folder or allow to overwrite it (overwrite=True)"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, not a folder")
    content = list(out.iterdir()) if out.is_dir() else []
    finished, begun = (out / INDEX_NAME).is_file(), (job.staging / "plan.json").is_file()
    if overwrite and (finished or begun or all(_OWN_NAME.fullmatch(path.name) for path in content)):
        _clear(out)
    elif finished:
        if read_index(out).get("import") != job.plan:
            raise ValueError(
                f"{out} holds a finished import of another source or by other options or rules: {advice}"
            )
        shutil.rmtree(job.staging, ignore_errors=True)
        return True
    elif begun:
        if json.loads((job.staging / "plan.json").read_text(encoding="utf-8")) != job.plan:
            raise ValueError(
                f"{out} holds an unfinished import of another source or by other options or rules: {advice}"
            )
    elif any(path.name != STAGING for path in content):
        raise ValueError(f"{out} is not empty and holds no import: choose another folder")
    job.staging.mkdir(parents=True, exist_ok=True)
    remove_leftovers(job.staging)
    write_atomically(job.staging / "plan.json", json.dumps(job.plan, ensure_ascii=False))
    return False


def run(job: Job, workers: int, advance: Callable[[int], None]) -> None:
    """Import what is missing and complete the folder. `advance` is called with numbers of rows."""
    if not (job.staging / "final.json").is_file():
        todo = []
        for unit in job.units:
            if _is_done(job, unit):
                advance(unit.rows)
            else:
                todo.append(unit)
        count = count_workers(workers, len(todo))
        with closing(ordered(_run_unit, todo, count, str(job.staging), job.read, job.max_examples)) as units:
            for unit, _ in zip(todo, units, strict=True):
                advance(unit.rows)
        _decide(job)
    _publish(job)


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


def _run_unit(unit: Unit, staging: str, read: Reader, max_examples: int) -> None:
    final = Path(staging, unit.name)
    accepted: dict[str, int] = {}
    rejected: list[dict[str, Any]] = []
    with aside(final) as unfinished:
        with ShardWriter(unfinished, max_examples=max_examples) as writer:
            for result in read(unit):
                reason = result.reason
                if result.example is not None:
                    reason = _accept(unit, result.row, result.example, accepted, writer)
                if reason is not None:
                    rejected.append(_rejection(unit, result.row, result.id, reason))
        shards = [asdict(shard) for shard in writer.shards]
        record = {"accepted": accepted, "rejected": rejected, "shards": shards}
        write_atomically(unfinished / "record.json", json.dumps(record, ensure_ascii=False))
        shutil.rmtree(final, ignore_errors=True)


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


def _record(job: Job, unit: Unit) -> dict[str, Any]:
    return json.loads((job.staging / unit.name / "record.json").read_text(encoding="utf-8"))


def _is_done(job: Job, unit: Unit) -> bool:
    folder = job.staging / unit.name
    try:
        return all(verify_shard(folder, ShardInfo(**shard)) for shard in _record(job, unit)["shards"])
    except (OSError, ValueError, TypeError, KeyError):
        return False


# --- completing ---


def _decide(job: Job) -> None:
    """Reject ids that came before, and write down which shard gets which name."""
    taken = dict(job.taken)
    rejected: list[dict[str, Any]] = []
    moves: list[dict[str, Any]] = []
    for unit in job.units:
        record = _record(job, unit)
        again = {id: taken[id] for id in record["accepted"] if id in taken}
        rows = {id: row for id, row in record["accepted"].items() if id not in again}
        taken |= {id: f"row {row} of {unit.file}" for id, row in rows.items()}
        folder, shards = unit.name, [ShardInfo(**shard) for shard in record["shards"]]
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
    write_atomically(job.staging / "final.json", json.dumps({"moves": moves, "rejected": len(rejected)}))


def _without(job: Job, shards: list[ShardInfo], source: str, target: str, ids: set[str]) -> list[ShardInfo]:
    """Write the shards of a unit again without some ids."""
    shutil.rmtree(job.staging / target, ignore_errors=True)
    with ShardWriter(job.staging / target, max_examples=job.max_examples) as writer:
        for info in shards:
            with Shard(job.staging / source / info.file) as shard:
                for number, key in enumerate(shard.keys):
                    if unquote(key) not in ids:
                        writer.write(shard.example(number))
    return writer.shards


def _publish(job: Job) -> None:
    final = json.loads((job.staging / "final.json").read_text(encoding="utf-8"))
    shards = [ShardInfo(**move["shard"]) for move in final["moves"]]
    for move, shard in zip(final["moves"], shards, strict=True):
        source = job.staging / move["from"]
        sidecar = source.with_name(sidecar_name(source.name))
        if sidecar.is_file():  # Before the shard: one that has its place has its sidecar.
            os.replace(sidecar, job.out / sidecar_name(shard.file))
        if source.is_file():
            os.replace(source, job.out / shard.file)
        elif not verify_shard(job.out, shard):
            raise ValueError(
                f"{job.out / shard.file} is missing or damaged: import again with overwrite=True"
            )
    write_index(job.out, shards, rejected=final["rejected"], **{"import": job.plan})
    shutil.rmtree(job.staging, ignore_errors=True)
