"""How far a trial is, read from its folder and from what it has printed."""

from __future__ import annotations

import csv
import json
import os
import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from v1lit.sweep.driver import FINISHED
from v1lit.sweep.folder import SweepFolder

TAIL, TAIL_OF_ROWS = 2**14, 2**17
"""Bytes of the end of a file that are looked at: of printed lines, and of measurements."""


@dataclass(frozen=True)
class Progress:
    """How far one trial is."""

    step: int | None = None
    """Optimizer steps; None where nothing says so yet."""
    metric: float | None = None
    """The last value of the first metric that is there."""


def read_progress(folder: SweepFolder, trial: str, metric: str) -> Progress:
    """How far a trial is: its results, else its last measurements and printed lines."""
    place = folder.trials / trial
    results = _results(place / FINISHED)
    if results:
        steps = results.get("train/steps")
        return Progress(None if steps is None else int(steps), results.get(metric))
    printed, step, value = _printed_step(folder.output(trial)), None, None
    for path in sorted(place.glob("csv*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        for row in _rows(path):
            step = int(row["step"]) + 1 if row.get("step", "").isdigit() else step
            value = float(row[metric]) if row.get(metric) else value
    known = [number for number in (printed, step) if number is not None]
    return Progress(max(known, default=None), value)


def _results(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _rows(path: Path) -> list[dict[str, str]]:
    """The last rows of a table of measurements, with the names of its columns."""
    try:
        with path.open("rb") as file:
            names = file.readline().decode()
            if path.stat().st_size > TAIL_OF_ROWS + len(names):
                file.seek(-TAIL_OF_ROWS, os.SEEK_END)
                file.readline()  # the rest of a row
            rest = file.read().decode()
        return list(csv.DictReader(StringIO(names + rest)))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _printed_step(path: Path) -> int | None:
    """The step in the last line about training; a run without a terminal prints one every half a minute."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    found = re.findall(r"^step (\d+)\b", text, re.MULTILINE)
    return int(found[-1]) if found else None
