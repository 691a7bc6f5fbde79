"""Reading shards: how close to the decoder's limit, beside plain webdataset and other libraries; on a CPU.

Usage: python tools/bench/data.py [--quick] [--json FILE] [--rival-python PYTHON ...]

The same shards for all, in the page cache. Readers run on one core with one thread and take turns, a few
examples each, so that all see the same machine; times are medians over laps. Packed batches come through
the data module with worker processes, as in training.

--rival-python names the interpreter of an environment of its own where megatron-energon or mosaicml-streaming
(or both) are installed:

    python -m venv rivals && rivals/bin/pip install megatron-energon mosaicml-streaming
    python tools/bench/data.py --rival-python rivals/bin/python
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from data_readers import Reader, Rival, Seconds, decoding, find_rival, in_turn, not_decoding, one_core
from data_shards import PICTURES, SIDE, Shards, make_shards
from data_workers import LENGTH, MIB, Epoch, data_module, own_between, run_epoch
from PIL import Image
from rows import Row, print_rows, write_rows

from v1lit.processes import available_cores

RIVALS = {"energon": "megatron-energon", "streaming": "mosaicml-streaming"}
KEPT_BLOCKS = 8
"""Blocks of memory that Pillow keeps for the next image. Without, it depends on what else lies on the heap
whether malloc gives each image's memory back to the system, which costs up to a fifth of the decoding."""
FLAT = 5.0
"""Percent by which a worker's memory may differ between two quarters of an epoch."""
Taken = Mapping[str, Seconds]


@dataclass(frozen=True)
class Case:
    """How much is read."""

    examples: int = 1600
    pictures: int = PICTURES
    laps: int = 3
    workers: tuple[int, ...] = (1, 2)


QUICK = Case(examples=60, pictures=4, laps=1, workers=(1,))
TITLE = f"Reading {SIDE} px jpegs"


def measure(case: Case, pythons: Sequence[str], quick: bool = False) -> list[Row]:
    """All rows, without their command."""
    with tempfile.TemporaryDirectory() as place:
        shards = make_shards(Path(place) / "shards", case.examples, case.pictures)
        # Tiny sizes are for seeing that everything runs: rivals only where they were asked for.
        names = list(RIVALS) if pythons or not quick else []
        with one_core(), same_memory(KEPT_BLOCKS):
            plain = in_turn(not_decoding(shards), shards.examples, case.laps)
            rivals = {name: find_rival(pythons, name, shards) for name in names}
            try:
                decoded = in_turn(contenders(shards, rivals), shards.examples, case.laps)
            finally:
                for rival in rivals.values():
                    if isinstance(rival, Rival):
                        rival.close()
        epochs = {}
        for workers in case.workers:
            last = workers == case.workers[-1]
            data = data_module(shards.folder, workers)
            epochs[workers] = run_epoch(data, shards.examples, states=not last or quick, memory=last)
    return [
        *rows_of_decoding(decoded, shards),
        *rows_of_rivals(decoded, rivals, shards, asked=bool(pythons)),
        *rows_without_decoding(plain, shards),
        *rows_of_packing(epochs, shards.examples / decoded["limit"].wall),
        *rows_of_state(epochs[case.workers[0]]),
        *rows_of_memory(epochs[case.workers[-1]], case.workers[-1]),
    ]


def contenders(shards: Shards, rivals: Mapping[str, Rival | str]) -> dict[str, Reader]:
    """All that read to RGB, rivals that run among them."""
    running = {name: rival for name, rival in rivals.items() if isinstance(rival, Rival)}
    return {**decoding(shards), **running}


@contextlib.contextmanager
def same_memory(blocks: int) -> Iterator[None]:
    """Pillow keeps so many blocks, here and in processes started from here."""
    before = Image.core.get_blocks_max()
    Image.core.set_blocks_max(blocks)
    os.environ["PILLOW_BLOCKS_MAX"] = str(blocks)
    try:
        yield
    finally:
        Image.core.set_blocks_max(before)
        del os.environ["PILLOW_BLOCKS_MAX"]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes with a single thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows_of_decoding(taken: Taken, shards: Shards) -> list[Row]:
    """From files to RGB, one core; `taken` are seconds per epoch."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("webdataset", "Pillow"))
    limit = f"every image's bytes from known places in the file, decoded by Pillow: {shards.describe()}"
    return [
        rate("to RGB, the limit of a core", taken["limit"], shards, taken["limit"], limit),
        rate(
            "to RGB, plain webdataset", taken["webdataset"], shards, taken["limit"], f"unshuffled; {versions}"
        ),
        rate("to RGB, v1lit", taken["v1lit"], shards, taken["limit"], "shuffled, every example validated"),
        rate(
            "to RGB, v1lit with its own decode_image",
            taken["v1lit, decode_image"],
            shards,
            taken["limit"],
            "as in training: orientation, transparency and 16-bit grey are seen to",
        ),
        ratio("to RGB, v1lit / plain webdataset: speed", taken["webdataset"], taken["v1lit"], 0.95),
        ratio("to RGB, v1lit / the limit of a core: speed", taken["limit"], taken["v1lit"], 0.90),
    ]


def rows_of_rivals(taken: Taken, rivals: Mapping[str, Rival | str], shards: Shards, asked: bool) -> list[Row]:
    """The other libraries on the same examples, or why they are missing."""
    rows = []
    for name, rival in rivals.items():
        what = f"to RGB, {RIVALS[name]}"
        if isinstance(rival, Rival):
            rows.append(rate(what, taken[name], shards, taken["limit"], f"unshuffled; {rival.versions}"))
        else:
            why = f"pip install {RIVALS[name]} into an environment of its own and name its interpreter"
            note = rival if asked else f"it was not asked for: {why} with --rival-python"
            rows.append(Row(f"{TITLE} {what}", None, "examples/s", "", note=note))
    return rows


def rows_without_decoding(taken: Taken, shards: Shards) -> list[Row]:
    """What reading costs by itself."""
    raw = "all bytes of the files in order, in blocks of 1 MiB"
    speed = shards.bytes / taken["raw"].wall / 1e6
    validated = "shuffled, every example validated, every image's header read"
    return [
        Row(f"{TITLE} not decoded, raw files", speed, "MB/s", "", note=raw),
        rate("not decoded, raw files", taken["raw"], shards, taken["raw"], raw),
        rate("not decoded, plain webdataset", taken["webdataset"], shards, taken["raw"], "JSON parsed"),
        rate("not decoded, v1lit to Example", taken["v1lit"], shards, taken["raw"], validated),
        ratio("not decoded, v1lit / plain webdataset: speed", taken["webdataset"], taken["v1lit"]),
    ]


def rows_of_packing(epochs: Mapping[int, Epoch], limit: float) -> list[Row]:
    """Through worker processes; `limit` in examples/s of one core that only decodes."""
    cores = available_cores()
    prepared = max(epoch.prepare_seconds for epoch in epochs.values())
    rows = []
    for workers, epoch in epochs.items():
        most = limit * min(workers, cores)
        rows.append(
            Row(
                f"{TITLE} to packed batches of {LENGTH:,} tokens, {_count(workers, 'worker')}",
                value := epoch.examples / epoch.seconds,
                "examples/s",
                "",
                most,
                value / most,
                note=f"{epoch.batches:,} batches of a tiny Qwen2.5-VL's processor, which scales and cuts the "
                "images into patches; limit: decoding alone on as many cores; not counted: "
                f"{prepared:.2g} s to prepare the data once",
            )
        )
    return rows


def rows_of_state(epoch: Epoch) -> list[Row]:
    """What a checkpoint costs the data side."""
    note = (
        f"worst case: every step saves, and takes no longer than its data ({1e3 * epoch.step_seconds:.3g} ms "
        "by one worker); noting the batch, state_dict() with packing on, and what it adds to torch.save"
    )
    share = epoch.state_share
    return [
        Row(
            "State of the data, time to save / time of a step",
            share,
            "%",
            "",
            goal="< 1 %",
            met=share < 1,
            note=note,
        ),
        Row("State of the data, in a checkpoint", epoch.state_bytes / 1024, "KiB", "", note="the largest"),
    ]


def rows_of_memory(epoch: Epoch, workers: int) -> list[Row]:
    """Of the largest worker over the epoch."""
    title = f"Memory of a worker, {_count(workers, 'worker')}, packing"
    parts = {
        "at the first batch": (0.0, epoch.memory[0].progress),
        "second quarter of the epoch": (0.25, 0.5),
        "third quarter": (0.5, 0.75),
        "last quarter": (0.75, 1.0),
    }
    own = {name: own_between(epoch.memory, *part) for name, part in parts.items()}
    note = "held by it alone (USS), the largest worker, median over the part"
    rows = [
        Row(f"{title}: {name}", None if held is None else held / MIB, "MiB", "", note=note)
        for name, held in own.items()
    ]
    before, after = own["second quarter of the epoch"], own["last quarter"]
    what, goal = f"{title}: growth from the second quarter to the last", f"<= {FLAT:g} % of it"
    if before is None or after is None:
        reason = (
            "the system does not tell (it takes Linux)" if not epoch.memory[0].workers else "too few looks"
        )
        return [
            *(replace(row, note=reason) for row in rows),
            Row(what, None, "MiB", "", goal=goal, note=reason),
        ]
    grown = after - before
    return [*rows, Row(what, grown / MIB, "MiB", "", goal=goal, met=grown <= FLAT / 100 * before)]


def rate(what: str, taken: Seconds, shards: Shards, limit: Seconds, note: str) -> Row:
    """Examples per second; `limit` for the same examples."""
    value, most = shards.examples / taken.wall, shards.examples / limit.wall
    return Row(f"{TITLE} {what}", value, "examples/s", "", most, value / most, note=note)


def ratio(what: str, other: Seconds, ours: Seconds, least: float | None = None) -> Row:
    """How many times as fast as another; by the clock, and beside it by the processor."""
    value = other.wall / ours.wall
    goal, met = (None, None) if least is None else (f">= {least:.2f}", value >= least)
    note = f"{other.cpu / ours.cpu:.3f} by processor time"
    return Row(f"{TITLE} {what}", value, "x", "", goal=goal, met=met, note=note)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: sees that everything runs")
    parser.add_argument(
        "--rival-python", action="append", default=[], metavar="PYTHON", help="may be given several times"
    )
    given = parser.parse_args(arguments)
    command = "python tools/bench/data.py" + (" --quick" if given.quick else "")
    command += " --rival-python PYTHON" if given.rival_python else ""
    with one_thread():
        found = measure(QUICK if given.quick else Case(), given.rival_python, given.quick)
    rows = [replace(row, command=command, met=None if given.quick else row.met) for row in found]
    print_rows(rows)
    if given.json:
        write_rows(given.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
