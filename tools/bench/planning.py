"""Planning at the size of a cluster, without processes: 1,024 ranks with 8 workers over 100,000 shards.

Usage: python tools/bench/planning.py [--quick] [--json FILE]

One rank's part of it: opening the index, planning an epoch, finding a position in it. Memory is what Python
and NumPy have allocated for it (tracemalloc), times are CPU seconds of one process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from rows import Row, print_rows, write_rows

from v1lit.data.config import MixtureConfig, StreamConfig
from v1lit.data.loading.sequence import open_sequence
from v1lit.data.sampling.epoch import Progress, StepLayout, rank_rows
from v1lit.data.sampling.mixture import GlobalSequence
from v1lit.data.sampling.remaining import MicroBatchState
from v1lit.data.sampling.rows import MicroBatchPlan as PlannedRow
from v1lit.data.sampling.rows import counted_rows
from v1lit.data.shards import ShardInfo, write_index

BATCH = 8
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """Size of data and cluster."""

    shards: int = 100_000
    examples: int = 100
    """Per shard."""
    ranks: int = 1024
    lanes: int = 3072
    """A multiple of 1,024 and of 768 ranks."""


QUICK = Case(shards=2_000, examples=10, ranks=8, lanes=24)


def measure(case: Case) -> list[Row]:
    """All rows, without their command."""
    stream = StreamConfig(lanes=case.lanes)
    with tempfile.TemporaryDirectory() as place:
        shards = (
            ShardInfo(f"shard-{number:06d}.tar", case.examples, 0, 0, 10**8, "0" * 64)
            for number in range(case.shards)
        )
        write_index(place, shards)
        sources = [MixtureConfig(place)]
        opening, opened = timed(lambda: open_sequence(sources, stream))
        tracemalloc.start()
        again = open_sequence(sources, stream)
        rows_of(again.sequence, Progress(0), case)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    first, _ = timed(lambda: next(rank(opened.sequence, Progress(0), case)))
    whole, rows = timed(lambda: rows_of(opened.sequence, Progress(0), case))
    read = rows * BATCH * 99 // 100
    deep = Progress(0, rows * 99 // 100, states=(MicroBatchState(read),) * case.ranks)
    found, _ = timed(lambda: next(rank(opened.sequence, deep, case)))
    what = f"Planning, {case.shards:,} shards, {case.ranks:,} ranks"
    of_epoch = f"{rows:,} batches of {BATCH}, {case.shards * case.examples:,} examples in all"
    return [
        Row(f"{what}: opening the index", opening, "s", "", note="18 MB of JSON, on every rank"),
        judged(f"{what}: the order of an epoch, to the first batch", first, "s", 1.0),
        judged(f"{what}: all batches of a rank's epoch", whole, "s", 1.0, of_epoch),
        judged(f"{what}: memory of a rank at most", peak / 1e6, "MB", 100.0),
        judged(f"{what}: finding a position behind 99 % of an epoch", found, "s", 1.0),
    ]


def judged(title: str, value: float, unit: str, most: float, note: str = "") -> Row:
    """A row whose value must stay below `most`."""
    return Row(title, value, unit, "", goal=f"< {most:g}", met=value < most, note=note)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds that something takes, and its result."""
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


def rank(sequence: GlobalSequence, progress: Progress, case: Case) -> Iterator[PlannedRow]:
    """The rows of one of the ranks."""
    layout = StepLayout(case.ranks, f"{BATCH} examples")
    progress = Progress(progress.epoch, progress.steps, layout=layout, states=progress.states)

    return rank_rows(
        sequence,
        progress,
        lambda stream, state: counted_rows(stream, state, BATCH),
        rank=case.ranks // 3,
        ranks=case.ranks,
    )


def rows_of(sequence: GlobalSequence, progress: Progress, case: Case) -> int:
    """How many rows a rank has."""
    return sum(1 for _ in rank(sequence, progress, case))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: sees that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    given = parser.parse_args(arguments)
    command = "python tools/bench/planning.py" + (" --quick" if given.quick else "")
    rows = [
        replace(row, command=command, met=None if given.quick else row.met)
        for row in measure(QUICK if given.quick else Case())
    ]
    print_rows(rows)
    if given.json is not None:
        write_rows(given.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
