"""Run all benchmarks of the CPU, in less than ten minutes, and write docs/benchmarks.md: `make bench`.

Usage: python tools/bench/run.py [--quick --out FOLDER] [--rival-python PYTHON ...]

Every benchmark is a process of its own with a time limit. One that fails is listed with its reason, the
others are run all the same, and the exit code is 1. Stopped with Ctrl-C, the old page stays.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from machine import bandwidth_ceiling, matmul_ceiling
from measure import last_line
from page import report, update
from rows import Row, read_rows

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"


@dataclass(frozen=True)
class Benchmark:
    """One script of this folder: title of its group of rows, and how long it may take."""

    title: str
    script: str
    seconds: float
    arguments: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        return " ".join(("python", f"tools/bench/{self.script}", *self.arguments))


BENCHMARKS = (
    Benchmark("The loss", "loss.py", 145),
    Benchmark("Packing", "packing.py", 60),
    Benchmark("Reading data", "data.py", 140),
    Benchmark("Planning", "planning.py", 15),
    Benchmark("The whole step", "step.py", 225),
)


def rows_of(benchmark: Benchmark, quick: bool = False, more: Sequence[str] = ()) -> tuple[list[Row], bool]:
    """A benchmark's rows and whether it went well; else one row that says why not.

    `more` arguments belong to this machine and are not shown. Goals are not judged by the tiny sizes of
    `quick`.
    """
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "rows.json"
        words = [str(HERE / benchmark.script), *benchmark.arguments, *more, "--json", str(file)]
        reason = _run([sys.executable, *words, *(["--quick"] if quick else [])], benchmark.seconds)
        if reason is None:
            try:
                rows = read_rows(file)
                return [replace(row, met=None) for row in rows] if quick else rows, True
            except (OSError, ValueError) as error:
                reason = f"it wrote no rows: {error}"
    return [
        Row(benchmark.title, None, "", benchmark.command, note=f"failed: {_without_paths(reason)}")
    ], False


def _run(words: Sequence[str], limit: float) -> str | None:
    """Run a command; why it failed, or None. Its children are stopped with it."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(words, stderr=errors, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        errors.seek(0)
        said = errors.read()
    if code == 0:
        return None
    print(said, file=sys.stderr)
    return last_line(said) or f"exit code {code}"


def _without_paths(reason: str) -> str:
    """The page is public: a message names files, not where they are."""
    return re.sub(r"(?<!\w)/(?:[\w.-]+/)+", "", reason)


def ceilings(quick: bool) -> dict[str, str]:
    """The most that this CPU does."""
    products = matmul_ceiling("cpu", torch.float32, quick) / 1e9
    copies = bandwidth_ceiling("cpu", quick) / 1e9
    return {"matrix products in float32": f"{products:,.0f} GFLOP/s", "copies": f"{copies:,.1f} GB/s"}


def out_folder(given: argparse.Namespace, parser: argparse.ArgumentParser) -> Path:
    """Where to write; figures of tiny sizes never get into docs/ by accident."""
    if given.out is not None:
        folder: Path = given.out
        return folder
    if given.quick:
        parser.error("--quick gives figures that mean nothing: say with --out FOLDER where to write them")
    return DOCS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: sees that everything runs")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="instead of docs/")
    parser.add_argument(
        "--rival-python", action="append", default=[], metavar="PYTHON", help="see data.py; several times"
    )
    given = parser.parse_args(arguments)
    folder = out_folder(given, parser)
    found: dict[str, list[Row]] = {}
    well = True
    most = ceilings(given.quick)
    for benchmark in BENCHMARKS:
        print(f"\n{benchmark.title}: {benchmark.command}", flush=True)
        rivals = given.rival_python if benchmark.script == "data.py" else ()
        more = [word for python in rivals for word in ("--rival-python", python)]
        found[benchmark.title], good = rows_of(benchmark, given.quick, more)
        well = well and good
    update(folder, "cpu", report(most, found))
    print(f"\nwritten: {folder / 'benchmarks.md'}" + ("" if well else "; something failed, see there"))
    return 0 if well else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the page is as it was")
