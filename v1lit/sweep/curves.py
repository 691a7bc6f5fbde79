"""Learning curves of a run: what was measured after which steps, tokens, operations and seconds."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

REAL_TOKENS, SECONDS, FLOPS = "train/real_tokens_per_second", "train/seconds_per_step", "train/flops_per_step"
AMOUNTS = ("steps", "tokens", "flops", "seconds")
"""What a value can be read against, since the beginning of the training."""


@dataclass
class Point:
    """A step after which something was logged."""

    steps: float
    """Optimizer steps."""
    tokens: float = math.nan
    """Real ones (no padding) that were trained on until then, of all ranks."""
    flops: float = math.nan
    """Operations until then, of all ranks."""
    seconds: float = math.nan
    """Of training until then: without validation, checkpoints, the start and the report."""
    values: dict[str, float] = field(default_factory=dict)
    """What was logged."""


def read_curve(folders: Sequence[Path]) -> list[Point]:
    """The points of a run from the `metrics.csv` in these folders, one for each start, in order of steps.

    What a resumed run has done again counts once, as it was the last time. Rates hold from one log to the
    next; steps whose log was lost with a run that was killed have the rates of the next log.
    """
    rows: dict[int, dict[str, float]] = {}
    for folder in folders:
        again = _rows(folder / "metrics.csv")
        begin = min(again, default=math.inf)
        rows = {step: values for step, values in rows.items() if step < begin} | again
    points = [Point(float(step), values=rows[step]) for step in sorted(rows)]
    for amount, rate in (("tokens", _tokens), ("flops", _flops), ("seconds", _seconds)):
        logged = [(point.steps, value) for point in points if not math.isnan(value := rate(point.values))]
        _add_up(points, amount, logged)
    return points


def _tokens(values: dict[str, float]) -> float:
    return values.get(REAL_TOKENS, math.nan) * values.get(SECONDS, math.nan)


def _flops(values: dict[str, float]) -> float:
    return values.get(FLOPS, math.nan)


def _seconds(values: dict[str, float]) -> float:
    return values.get(SECONDS, math.nan)


def _add_up(points: Sequence[Point], amount: str, rates: Sequence[tuple[float, float]]) -> None:
    """Set an amount of all points from its rate per step, logged at the end of the steps it holds for.

    Steps after the last log have its rate.
    """
    if not rates:
        return
    for point in points:
        total, before = 0.0, 0.0
        for step, rate in rates:
            total += max(0.0, min(step, point.steps) - before) * rate
            before = step
        setattr(point, amount, total + max(0.0, point.steps - before) * rates[-1][1])


def _rows(path: Path) -> dict[int, dict[str, float]]:
    """What was logged after each step; Lightning numbers steps from 0, so row 9 is of step 10."""
    rows: dict[int, dict[str, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                step = int(row["step"]) + 1
                values = {name: float(text) for name, text in row.items() if text and name}
            except (ValueError, KeyError, TypeError):
                continue  # cut off while it was written
            rows.setdefault(step, {}).update(values)
    return rows


def read_at(points: Sequence[Point], metric: str, amount: str, where: float) -> float:
    """The metric where a curve has used `where` of an amount: on the line between the points beside it.

    NaN before the first point and behind the last one, where nothing was measured.
    """
    known = sorted(
        (getattr(point, amount), point.values[metric])
        for point in points
        if metric in point.values and not math.isnan(getattr(point, amount))
    )
    for (left, low), (right, high) in pairwise(known):
        if left <= where <= right:
            return low + (high - low) * (where - left) / (right - left) if right > left else high
    return known[0][1] if len(known) == 1 and known[0][0] == where else math.nan


def reached(points: Sequence[Point], metric: str, amount: str) -> float:
    """The largest amount at which a curve has this metric; NaN where it has none."""
    known = [getattr(point, amount) for point in points if metric in point.values]
    return max((value for value in known if not math.isnan(value)), default=math.nan)
