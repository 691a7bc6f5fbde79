"""Rows of docs/benchmarks.md, as every benchmark hands them over: `--json FILE` writes a list of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from v1lit.files import write_atomically


@dataclass(frozen=True)
class Row:
    """One figure. What could not be had stays None and `note` says why; nothing is left out."""

    title: str
    """What was measured, in words that stand alone: "Loss, 4,096 tokens all supervised: time / published"."""
    value: float | None
    """The figure in `unit`; None is printed as missing."""
    unit: str
    """"s", "MiB", "x", "%", "tokens/s", "TFLOP/s", ..."""
    command: str
    """What to type, from the root of a checkout, to get this row again."""
    limit: float | None = None
    """The best that the machine could do, in `unit`: operations or bytes over the measured ceiling."""
    share: float | None = None
    """How much of the limit was reached, 0 to 1: limit / value of a time, value / limit of a rate."""
    goal: str | None = None
    """In words: "<= 0.85", ">= 3"; None where nothing was promised."""
    met: bool | None = None
    """Whether the goal was reached; None without a goal or without a value."""
    note: str = ""
    """How the limit came about, what differs from the obvious, or why the value is missing."""


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a JSON list of objects, aside and then renamed; floats that are no numbers are refused."""
    text = json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False)
    write_atomically(path, text + "\n")


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote. Raises ValueError for anything else."""
    known = {field.name for field in fields(Row)}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, list) or any(not isinstance(one, dict) for one in content):
            raise TypeError("not a list of objects")
        if unknown := sorted({key for one in content for key in one} - known):
            raise TypeError(f"unknown fields {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return [Row(**one) for one in content]
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path.name} holds no benchmark rows: {error}") from error


def print_rows(rows: Sequence[Row]) -> None:
    """For the terminal: title, value and unit, goal."""
    for row in rows:
        value = "missing" if row.value is None else f"{row.value:.4g} {row.unit}"
        goal = f"  (goal {row.goal}: {'met' if row.met else 'not judged' if row.met is None else 'missed'})"
        print(f"{row.title}: {value}{goal if row.goal else ''}", flush=True)
