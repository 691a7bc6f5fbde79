"""The figures of a report of a sweep: metrics against steps, tokens, FLOPs and seconds."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from v1lit.sweep.curves import AMOUNTS
from v1lit.sweep.report_tables import Tables
from v1lit.sweep.results import Setting, SweepResults, column_of, in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

KINDS = CURVES, DIFFERENCES = "curves", "differences"
TITLES = {"steps": "optimizer steps", "tokens": "tokens", "flops": "FLOPs", "seconds": "seconds of training"}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Told apart by the colour-blind as well. Source: Okabe and Ito, Color Universal Design (2008)."""
STYLES = ("-", "--", ":", "-.")
MARKS = ("o", "s", "^", "D")
LOOK: dict[Any, Any] = {
    "text.parse_math": False,  # names are no formulas
    "font.family": "DejaVu Sans",  # matplotlib's own: the same everywhere
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Drawing:
    """A figure in a file's bytes."""

    kind: str
    """`curves` or `differences`."""
    name: str
    """Of its file, without a suffix."""
    title: str
    png: bytes
    pdf: bytes


def draw(sweep: SweepResults, tables: Tables) -> Iterator[Drawing]:
    """Curves for each metric and group, and for each metric its differences from the baseline."""
    groups = dict.fromkeys(sweep.group_of(setting) for setting in sweep.settings())
    taken: set[str] = set()
    for metric in sweep.metrics:
        for group in groups:
            settings = [one for one in sweep.settings() if sweep.group_of(one) == group]
            lines = [
                (label, part)
                for setting in settings
                if len(part := _points(sweep, tables, setting, metric))
                for label in [_label(setting, group)]
            ]
            if lines:
                title = metric + (f" ({in_words(dict(group))})" if group and len(groups) > 1 else "")
                yield _drawing(CURVES, _name(title, taken), title, partial(_curves, title, lines))
        if len(tables.differences):
            frame = tables.differences[tables.differences["metric"] == metric].dropna(subset=["low"])
            if len(frame):
                title = f"{metric}: differences from {in_words(sweep.baseline or {})}"
                labels = [", ".join(line) for line in frame[[*map(column_of, sweep.axes)]].to_numpy()]
                figure = partial(_forest, title, labels, frame)
                yield _drawing(DIFFERENCES, _name(title, taken), title, figure)


def _label(setting: dict[str, str], group: Setting) -> str:
    return in_words({axis: label for axis, label in setting.items() if (axis, label) not in group} or setting)


def _points(sweep: SweepResults, tables: Tables, setting: dict[str, str], metric: str) -> DataFrame:
    """The curves of a setting, or where there are none its values at the end, against the whole cost."""
    import pandas as pd

    frame = tables.curves
    if not len(frame) or metric not in set(frame["metric"]):
        if not len(tables.values):
            return pd.DataFrame()
        ends = tables.values[tables.values["metric"] == metric][["trial", "value"]].dropna()
        frame = tables.trials.assign(seconds=tables.trials["training_seconds"]).merge(ends, on="trial")
    else:
        frame = frame[frame["metric"] == metric]
    for column, label in sweep.labels(setting).items():
        frame = frame[frame[column] == label]
    return frame


def _name(title: str, taken: set[str]) -> str:
    """A name of a file that no other figure has."""
    name = plain = re.sub(r"[^A-Za-z0-9]+", "_", title).strip("_")[:80] or "figure"
    while name.lower() in taken:
        name = f"{plain}_{len(taken) + 1}"
    taken.add(name.lower())
    return name


def _drawing(kind: str, name: str, title: str, make: Callable[[], Figure]) -> Drawing:
    import matplotlib

    with matplotlib.rc_context(LOOK):
        figure = make()
        png, pdf = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=110, metadata={"Software": None})
        figure.savefig(pdf, format="pdf", metadata={"Creator": None, "Producer": None, "CreationDate": None})
    return Drawing(kind, name, title, png.getvalue(), pdf.getvalue())


def _curves(title: str, lines: list[tuple[str, DataFrame]]) -> Figure:
    from matplotlib.figure import Figure

    rows_of_legend = -(-len(lines) // 3)
    figure = Figure(figsize=(8, 6.2 + 0.2 * rows_of_legend), layout="constrained")
    panels: Any = figure.subplots(2, 2, sharey=True)
    for panel, amount in zip(panels.flat, AMOUNTS, strict=True):
        for index, (label, points) in enumerate(lines):
            _line(panel, amount, index, label, points)
        panel.set_xlabel(TITLES[amount])
        panel.set_xlim(left=0)
        panel.locator_params(axis="x", nbins=6)
        panel.ticklabel_format(axis="x", style="sci", scilimits=(0, 4))
        panel.grid(alpha=0.25)
    figure.suptitle(title, fontsize=11)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _line(panel: Any, amount: str, index: int, label: str, points: DataFrame) -> None:
    """Curves of all seeds, thin, and their mean; or a point for each seed where each has only one."""
    color, style = COLORS[index % len(COLORS)], STYLES[index // len(COLORS) % len(STYLES)]
    known = points.dropna(subset=[amount])
    if (points.groupby("seed").size() <= 1).all():
        mark = MARKS[index // len(COLORS) % len(MARKS)]
        panel.plot(known[amount], known["value"], mark, color=color, label=label, markersize=5)
        return
    for _, seed in known.groupby("seed", sort=False):
        panel.plot(seed[amount], seed["value"], style, color=color, linewidth=0.6, alpha=0.4)
    # Means over seeds where all were validated: steps are the same in all of them, amounts nearly.
    seeds = points["seed"].nunique()
    at_steps = points.groupby("steps").filter(lambda rows: rows["seed"].nunique() == seeds).groupby("steps")
    means = (
        at_steps[["value", amount]].mean() if amount != "steps" else at_steps[["value"]].mean().reset_index()
    )
    panel.plot(
        means[amount],
        means["value"],
        style,
        color=color,
        linewidth=1.8,
        marker="o",
        markersize=3,
        label=label,
    )


def _forest(title: str, labels: Sequence[str], frame: DataFrame) -> Figure:
    """Mean differences, one below the other: thick lines are the bootstrap's intervals, thin ones Student's.

    The thick ones choose the scale; thin ones that are much wider are cut off at the edge.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.3 + 0.24 * len(frame)), layout="constrained")
    panel: Any = figure.subplots()
    places = range(len(frame))
    panel.axvline(0, color="#888888", linewidth=1)
    panel.hlines(places, frame["t_low"], frame["t_high"], color=COLORS[0], linewidth=0.8)
    panel.hlines(places, frame["low"], frame["high"], color=COLORS[0], linewidth=3)
    panel.plot(frame["difference"], places, "o", color=COLORS[1], markersize=5)
    low, high = min(0.0, frame["low"].min()), max(0.0, frame["high"].max())
    room = 0.3 * (high - low) or 1.0
    panel.set_xlim(low - room, high + room)
    panel.set_yticks(places, labels)
    panel.invert_yaxis()
    panel.grid(axis="x", alpha=0.25)
    panel.set_title(title, fontsize=11)
    return figure
