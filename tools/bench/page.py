"""docs/benchmarks.md: written from docs/benchmarks.json, which keeps what the last runs found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from machine import describe_machine
from rows import Row

from v1lit.cli.environment import versions
from v1lit.files import write_atomically

RESULTS = "benchmarks.json"
PAGE = "benchmarks.md"
SECTIONS = {"cpu": "On a CPU", "generation": "Generation on a CPU, one thread", "gpu": "On a GPU"}
TARGETS = {"cpu": "make bench", "generation": "make bench-generate", "gpu": "make bench-gpu"}
NO_GPU = "no GPU was at hand"

# What the page says of the GPU where `make bench-gpu` never ran: its figures are promised, and missing.
GPU_TITLES = {
    "The loss": ("Loss kernel beside Liger's: time", "Loss kernel beside Liger's: peak memory"),
    "The whole step": (
        "Step of a 2B model at 8,192 tokens: time, tokens/s, MFU and peak memory",
        "The same with activation checkpointing",
    ),
    "Decoding": ("Tokens/s with the pointer head", "Tokens/s without it"),
}

INTRODUCTION = """\
# Benchmarks

How fast v1lit is, and how close to the most that the machine can do. `make bench` measures the first part
again in less than ten minutes, `make bench-generate` the second, `make bench-gpu` the third where there is a
GPU; all write this page. Times depend on the machine and on what else runs on it, ratios much less: the two
sides of a ratio are run in turn.

*Limit* is the best value that the machine could reach: the operations that are needed over its measured rate
of matrix products, or the bytes over its measured memory bandwidth. *Share* says how much of that was
reached. A figure that could not be had is listed as missing, with the reason.
"""


@dataclass(frozen=True)
class Report:
    """What one run found, and on what."""

    date: str
    machine: dict[str, str]
    versions: dict[str, str]
    ceilings: dict[str, str]
    """The measured most: "matrix products in float32" -> "412 GFLOP/s"."""
    groups: dict[str, list[Row]]


def report(ceilings: Mapping[str, str], groups: Mapping[str, Sequence[Row]]) -> Report:
    """Of this machine, today."""
    today = datetime.now(timezone.utc).date().isoformat()
    return Report(
        today,
        describe_machine(),
        versions(("torch", "transformers", "v1lit")),
        dict(ceilings),
        {name: list(rows) for name, rows in groups.items()},
    )


def missing_gpu(reason: str = NO_GPU) -> dict[str, list[Row]]:
    """The rows of the GPU section without their values."""
    return {
        group: [Row(title, None, "", "make bench-gpu", note=reason) for title in titles]
        for group, titles in GPU_TITLES.items()
    }


def update(folder: Path, section: str, found: Report) -> None:
    """Keep a section's results and write the page anew; the other section stays as it was."""
    reports = {**read_results(folder / RESULTS), section: found}
    content = {name: asdict(one) for name, one in reports.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RESULTS, json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_atomically(folder / PAGE, render(reports))


def read_results(path: Path) -> dict[str, Report]:
    """What `update` kept; nothing where there is no such file. Raises ValueError for another file."""
    if not path.exists():
        return {}
    try:
        return {
            name: Report(
                **{
                    **values,
                    "groups": {
                        title: [Row(**row) for row in rows] for title, rows in values["groups"].items()
                    },
                }
            )
            for name, values in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path.name} was not written by these benchmarks ({error}); remove it, and run them again"
        ) from error


def render(reports: Mapping[str, Report]) -> str:
    """The page."""
    parts = [INTRODUCTION]
    for section, title in SECTIONS.items():
        found = reports.get(section)
        parts.append(f"## {title}\n")
        if found is not None:
            parts.append(_header(found))
        groups = found.groups if found is not None else missing_gpu() if section == "gpu" else {}
        parts += [f"### {name}\n\n{_table(rows)}" for name, rows in groups.items()]
        if not groups:
            parts.append(f"Not measured yet: `{TARGETS[section]}`.\n")
    return "\n".join(parts)


def _header(found: Report) -> str:
    def listed(values: Mapping[str, str]) -> str:
        return "; ".join(f"{name} {value}" for name, value in values.items())

    return (
        f"- Measured on {found.date}\n- Machine: {listed(found.machine)}\n"
        f"- Versions: {listed(found.versions)}\n"
        f"- Ceilings, measured in the same run: {listed(found.ceilings) or 'none'}\n"
    )


def _table(rows: Sequence[Row]) -> str:
    lines = ["| what | value | goal | limit | share | command |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        share = "" if row.share is None else f"{row.share:.0%}"
        limit = "" if row.limit is None else f"{number(row.limit)} {row.unit}".strip()
        cells = (_cell(row.title), _value(row), _goal(row), limit, share, f"`{row.command}`")
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"- {_cell(row.title)}: {_cell(row.note)}" for row in rows if row.note]
    return "\n".join([*lines, "", *notes, ""] if notes else [*lines, ""])


def _value(row: Row) -> str:
    return "**missing**" if row.value is None else f"{number(row.value)} {row.unit}".strip()


def _goal(row: Row) -> str:
    if row.goal is None:
        return ""
    verdict = {True: "met", False: "**missed**", None: "not judged"}[row.met]
    return f"{_cell(row.goal)}: {verdict}"


def _cell(text: str) -> str:
    """Safe inside a table: one line, no bars, nothing that reads as HTML."""
    return " ".join(text.split()).replace("|", "/").replace("<", "&lt;").replace(">", "&gt;")


def number(value: float) -> str:
    """Three digits, and whole numbers beyond them."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
