"""Resharding: merge, split and shuffle shards without holding them in memory.

Two passes. The first reads the tar headers of all inputs and notes for every example where it lies: 24
bytes in a file that the second pass maps (and 24 bytes of its id, to find ids that occur twice). The order
of the output is computed from a seed, not stored, so each output shard is a function of the table and its
own number. In the second pass every process takes one output shard at a time, reads some `BUFFER_BYTES` of
its examples in the order in which they lie on the disk, and writes them in their new order.

The alternative, distributing all examples to bucket files and shuffling each bucket in memory, reads and
writes everything twice and takes as much disk space again. In numbers:

- 1 GB on a laptop, 10,000 examples of 100 kB: the table has 240 kB and the data lies in the page cache;
  both passes together take about as long as copying.
- 10 TB, 10^8 examples of 100 kB: the table has 2.4 GB, ids another 2.4 GB while they are compared, all on
  disk. On flash: one pass over headers, one read and one write, 20 TB at 2 GB/s, 3 hours. On 24 disks at 1
  GB/s: the headers 3 hours; then a seek of 5 ms per example, shared by the disks of as many processes, 6
  hours; writing 3 hours. Bucket files: two reads and two writes, 11 hours and 10 TB more. On spinning disks
  they win where examples are smaller than that, on flash never.
- Inputs without an index are read once more, for checksums (10 TB: 3 hours); `v1lit data index` costs the
  same.
- Remote inputs are downloaded once and kept until the end, so they need their size in disk space.

Memory of a process: `BUFFER_BYTES`, the largest example twice (a reader's limit is 1 GiB), 12 bytes per
example of `OpenShards` of the inputs and 30 of the output shard. Of the main process: some 50 MB for
ids, 500 bytes per input shard and 100 per output shard. Nothing else grows with the data.

    OUT/.reshard/plan.json           inputs and options; with others the work starts again from nothing
    OUT/.reshard/table.bin, .json    all examples
    OUT/.reshard/shards/000000/      one finished output shard and its record: a unit of a `StagedFolder`
    OUT/shard-000000.tar ...  OUT/skipped.jsonl  OUT/index.json
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO

from v1lit.data.remote import is_remote
from v1lit.data.shards import ShardInfo
from v1lit.data.shards.staging import StagedFolder
from v1lit.data.tools.find import Finding, ShardList, find_shards
from v1lit.data.tools.reshard_shards import (
    INPUT_CACHE_BYTES,
    UNITS,
    InputShards,
    cut,
    has_size,
    unit_name,
    write_shard,
)
from v1lit.data.tools.reshard_table import ExampleTable, RepeatedIdError, make_table
from v1lit.errors import check_choices, check_least
from v1lit.files import aside, remove, remove_leftovers
from v1lit.paths import expand_path
from v1lit.processes import count_workers, ordered, progress_bar

STAGING = ".reshard"
SKIPPED_NAME = "skipped.jsonl"
RULES_VERSION = 1
"""Raised whenever the same inputs and options make other shards than before."""


@dataclass(frozen=True)
class ReshardOptions:
    """How the output is made; the same inputs and options make the same bytes."""

    shuffle: int | None = None
    """Seed of the order, None to keep the order of the inputs."""
    examples_per_shard: int = 1000
    """Most examples of a shard."""
    max_shard_mb: int = 512
    """Most MiB of a shard's file; a larger example gets a shard for itself."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What a shard or an example does that cannot be used: `stop`, or `skip` it and list it."""
    GROUP: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_choices(self)
        check_least(self, 0, "shuffle")
        check_least(self, 1, "examples_per_shard", "max_shard_mb")


@dataclass
class ReshardReport:
    """The output: folder, numbers of shards, examples and bytes, what was skipped by kind, and seconds."""

    folder: Path
    shards: int = 0
    examples: int = 0
    bytes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def reshard(
    locations: Sequence[str],
    out: str | os.PathLike[str],
    options: ReshardOptions | None = None,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> ReshardReport:
    """Write the examples of some shards to new shards in the folder `out`, their bytes unchanged.

    `out` is complete when it has its index.json. Stopped in any way and started again with the same inputs
    and options, the work resumes, and makes the same bytes as if it had not been stopped.

    Args:
        locations: folders, tar files or patterns, local or URLs, in the order of the output.
        out: a folder that is empty, does not exist, or holds an unfinished reshard.
        workers: processes; None for one per core.
        progress: show progress bars on stderr.

    Raises ValueError where there are no shards, `out` holds something else, or an id occurs twice; with
    `on_bad="stop"` ShardError for a shard or example that cannot be used.
    """
    started, options, out = time.monotonic(), options or ReshardOptions(), Path(expand_path(out))
    workers = count_workers(workers, 2**31)
    shard_list = find_shards(locations)
    if options.on_bad == "stop" and shard_list.findings:
        raise shard_list.findings[0].as_error()
    staged = StagedFolder(out, STAGING, has_size)
    _check_free(staged)
    with _locked(staged):
        _begin(staged, {"version": RULES_VERSION, **asdict(options), "inputs": _inputs(shard_list)})
        if staged.final is None:
            _write_shards(staged, shard_list, options, workers, progress)
        report = _publish(staged, options, shard_list.findings)
    staged.discard()
    report.seconds = time.monotonic() - started
    return report


def _check_free(staged: StagedFolder) -> None:
    out = staged.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder that is empty or does not exist")
    others = sorted(path.name for path in out.iterdir() if path.name != STAGING) if out.is_dir() else []
    if others and staged.final is None:  # Else shards may have their places already.
        raise ValueError(
            f"{out} is not empty (it holds {others[0]}); give a folder that is empty or does not exist"
        )


@contextmanager
def _locked(staged: StagedFolder) -> Iterator[None]:
    """The staging folder is for this process alone; without anything done in it, it does not stay behind."""
    from filelock import FileLock, Timeout

    is_new = not staged.out.exists()
    staged.path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(staged.path / "lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"{staged.out}: another process is writing to this folder") from None
    except RepeatedIdError:  # Nothing to resume: other inputs are needed.
        staged.discard()
        if is_new:
            staged.out.rmdir()
        raise


def _inputs(shard_list: ShardList) -> list[list[Any]]:
    """Location, size in bytes and time of change of all inputs, None where they are remote."""
    inputs: list[list[Any]] = []
    for shard in shard_list.shards:
        location, size, changed = shard.location, None, None
        if is_remote(location):
            size = shard.info.bytes if shard.info is not None else None
        elif os.path.isfile(location):
            status = os.stat(location)
            location, size, changed = os.path.abspath(location), status.st_size, status.st_mtime_ns
        inputs.append([location, size, changed])
    return inputs


def _begin(staged: StagedFolder, plan: dict[str, Any]) -> None:
    """Make the staging folder ready for this plan: resume with what is there, if it was made for it."""
    text = json.dumps(plan)
    if staged.plan != json.loads(text):
        if staged.final is not None:
            raise ValueError(
                f"{staged.out} holds an almost finished reshard of other inputs or options: "
                "give another folder"
            )
        for left in staged.path.iterdir():
            if left.name != "lock":
                remove(left)
    remove_leftovers(staged.path / UNITS)
    staged.begin(text)


def _write_shards(
    staged: StagedFolder, shard_list: ShardList, options: ReshardOptions, workers: int, progress: bool
) -> None:
    """Both passes, as far as they are not done yet."""
    skip = options.on_bad == "skip"
    staging = staged.path
    cache = (str(staging / "inputs"), INPUT_CACHE_BYTES)
    make_table(staging, shard_list.shards, cache, skip, min(workers, len(shard_list.shards)), progress)
    inputs = InputShards(staged)
    cuts = cut(inputs.table, options.shuffle, options.examples_per_shard, options.max_shard_mb * 2**20)
    outputs = [(shard_index, start, stop) for shard_index, (start, stop) in enumerate(pairwise(cuts))]
    todo = [output for output in outputs if not staged.is_done(unit_name(output[0]))]
    written = ordered(write_shard, todo, count_workers(workers, len(todo)), inputs)
    with closing(written), progress_bar("writing", len(todo), progress) as advance:
        for examples in written:
            advance(examples)
    staged.finish({"shards": len(outputs)})


def _publish(staged: StagedFolder, options: ReshardOptions, skipped: Sequence[Finding]) -> ReshardReport:
    """Give the shards their names, leaving out empty ones, and write the index last."""
    shards: list[tuple[str, ShardInfo]] = []
    report = ReshardReport(staged.out)
    remove_leftovers(staged.out)  # An index that was being written when this was killed.
    with aside(staged.out / SKIPPED_NAME) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for finding in (*skipped, *ExampleTable.load(staged.path).findings):
            _note(report, finding, file)
        for shard_index in range(staged.final["shards"]):
            record = staged.record(unit := unit_name(shard_index))
            for finding in record["skipped"]:
                _note(report, Finding(**finding), file)
            for shard in record["shards"]:
                place = f"shard-{len(shards):06d}.tar"
                shards.append((f"{unit}/{shard.file}", replace(shard, file=place)))
    if not report.skipped:
        (staged.out / SKIPPED_NAME).unlink()
    origin = {**asdict(options), "skipped": report.skipped.total()}
    index = staged.publish(shards, reshard=origin)
    report.shards, report.examples = len(shards), index["examples"]
    report.bytes = sum(shard.bytes for _, shard in shards)
    return report


def _note(report: ReshardReport, finding: Finding, file: TextIO) -> None:
    report.skipped[finding.kind] += 1
    file.write(json.dumps(asdict(finding)) + "\n")
