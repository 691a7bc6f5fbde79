"""What a report of a sweep says, section by section, before it becomes Markdown, HTML or LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from v1lit.sweep.report_tables import Tables, axes_of, column_of, in_words
from v1lit.sweep.results import SweepResults

if TYPE_CHECKING:
    from pandas import DataFrame

Row = dict[str, str]
COST = ["attempts", "seconds", "training_seconds", "steps", "tokens", "flops"]


@dataclass
class Part:
    """A section: a title, what is said, a table and figures, each of which may be missing."""

    title: str
    said: list[str] = field(default_factory=list)
    """Paragraphs of plain text."""
    points: list[str] = field(default_factory=list)
    """A list below them."""
    rows: list[Row] = field(default_factory=list)
    """A table: by column its text."""
    figures: list[str] = field(default_factory=list)
    """Names of figures."""
    in_paper: bool = False
    """Whether the table is one for LaTeX."""


def make_parts(sweep: SweepResults, tables: Tables, figures: Sequence[str]) -> list[Part]:
    """All sections of a report."""
    parts = [_head(sweep, tables), _missing(tables)]
    parts.append(
        Part(
            "Values at the end",
            [
                "Mean and standard deviation (n - 1) over the seeds of a setting; the number of seeds "
                "stands in brackets where it is not the planned one. The last values are those of "
                "metrics.json, of the best checkpoint, where it has the metric; else those that were "
                "logged last."
            ],
            rows=_settings(sweep, tables.settings),
            in_paper=True,
        )
    )
    parts.append(_differences("Differences from the baseline", sweep, tables.differences, tables.level))
    parts.append(_equal(sweep, tables))
    if rows := _rows_of_differences(sweep, tables.equal_differences):
        title = "Differences from the baseline at equal FLOPs"
        parts.append(
            Part(title, _intervals(tables.equal_differences, tables.level), rows=rows, in_paper=True)
        )
    curves = (
        "Thick lines are means over seeds, thin ones single seeds. Tokens are real ones, without padding. "
        "FLOPs are counted by formula (PaLM, appendix B), forward and backward. Seconds are those of "
        "training, without validation, checkpoints and the start. A metric that is measured at the end "
        "only has a point for each seed."
    )
    parts.append(
        Part("Curves", [curves] if figures else ["No finished trial has curves."], figures=list(figures))
    )
    parts += [_cost_of_settings(sweep, tables.trials), _cost_of_trials(tables.trials)]
    parts += _versions(sweep)
    return parts


def number(value: Any, digits: int = 4) -> str:
    """A number as tables show it; `–` where there is none."""
    if value is None or math.isnan(value):
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.{digits}f}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def count(value: float) -> str:
    """A whole number, or a large one with three digits."""
    if math.isnan(value):
        return "–"
    return f"{value:.0f}" if abs(value) < 1e6 else f"{value:.3g}"


def _head(sweep: SweepResults, tables: Tables) -> Part:
    done = sum(trial.done for trial in sweep.trials)
    seeds = ", ".join(map(str, dict.fromkeys(trial.seed for trial in sweep.trials)))
    budget = ", ".join(f"{amount:g} {kind}" for kind, amount in sweep.budget.items()) or "none stated"
    points = [
        f"base recipe: {sweep.recipe}",
        f"trials: {len(sweep.trials)}, of which {done} are done",
        f"seeds: {seeds}",
        f"budget of each trial: {budget}",
        *(f"axis {axis}: {', '.join(labels)}" for axis, labels in sweep.axes.items()),
        f"metrics: {', '.join(sweep.metrics)}",
        f"baseline: {in_words(sweep.baseline) if sweep.baseline else 'none'}",
    ]
    return Part(f"Sweep {sweep.name}", points=points)


def _missing(tables: Tables) -> Part:
    if not tables.problems:
        return Part("What is missing", ["Nothing: every trial is done and has every metric."])
    return Part("What is missing", points=tables.problems)


def _settings(sweep: SweepResults, frame: DataFrame) -> list[Row]:
    """A row for each setting, with a column for each metric."""
    rows: dict[tuple[str, ...], Row] = {}
    axes = [column_of(axis) for axis in sweep.axes]
    for line in frame.to_dict("records"):
        row = rows.setdefault(tuple(line[axis] for axis in axes), {axis: line[axis] for axis in axes})
        deviation = "" if math.isnan(line["deviation"]) else f" ± {number(line['deviation'])}"
        seeds = "" if line["seeds"] == line["planned"] else f" ({line['seeds']} of {line['planned']})"
        row[line["metric"]] = f"{number(line['mean'])}{deviation}{seeds}"
    for row in rows.values():
        for metric in dict.fromkeys(frame["metric"]):
            row.setdefault(metric, "–")
    return list(rows.values())


def _differences(title: str, sweep: SweepResults, frame: DataFrame, level: float) -> Part:
    if not sweep.baseline:
        return Part(
            title,
            ["No baseline was chosen; choose one with: v1lit sweep report FOLDER --baseline AXIS=LABEL"],
        )
    rows = _rows_of_differences(sweep, frame)
    return Part(
        title, _intervals(frame, level) if rows else ["No setting has a baseline."], rows=rows, in_paper=True
    )


def _rows_of_differences(sweep: SweepResults, frame: DataFrame) -> list[Row]:
    axes = [column_of(axis) for axis in sweep.axes]
    return [
        {
            **{axis: line[axis] for axis in axes},
            "metric": line["metric"],
            "difference": number(line["difference"]),
            "bootstrap": _interval(line["low"], line["high"]),
            "Student": _interval(line["t_low"], line["t_high"]),
            "seeds": str(line["seeds"]),
            "clear": "yes" if line["clear"] else "no",
        }
        for line in frame.to_dict("records")
    ]


def _interval(low: float, high: float) -> str:
    return "–" if math.isnan(low) else f"[{number(low)}, {number(high)}]"


def _intervals(frame: DataFrame, level: float) -> list[str]:
    """What the intervals of this table mean, and what they cannot."""
    each, seeds = float(frame["level"].iloc[0]), int(frame["seeds"].max())
    said = [
        "Means of the differences between runs of the same seed: the setting less its baseline. The "
        f"intervals of this table hold together at {level:.0%}: there are {len(frame)} comparisons, so each "
        f"one is made at {100 * each:.4g} % (Bonferroni, which holds however the comparisons depend on each "
        "other, and these share their baselines). Two intervals: the bootstrap's, between percentiles of "
        "the means of all draws of the seeds with replacement, and Student's, which takes the differences "
        "to be normally distributed. Clear is a difference whose two intervals both leave out zero."
    ]
    if seeds and (widest := float(frame["covers_at_most"].max())) < each:
        said.append(
            f"With {seeds} seeds the bootstrap cannot reach that level: no draw lies outside of the "
            "smallest and the largest difference, and that range has the median difference in it in at "
            f"most {widest:.1%} of sweeps, whatever level is asked for, and without any correction. Read it "
            "as the range of the seeds that were run; what is claimed about other seeds has to rest on "
            "Student's interval, or on more seeds."
        )
    said.append(
        "Neither interval knows of the held-out examples, which are the same in all trials: they say what "
        "other seeds would give on these examples, not what other examples would."
    )
    return said


def _equal(sweep: SweepResults, tables: Tables) -> Part:
    title = "Values at equal FLOPs"
    rows = _settings(sweep, tables.equal_settings)
    if not rows:
        return Part(title, ["No metric has curves with FLOPs in all finished trials of a group."])
    frame = tables.equal_settings.drop_duplicates([*map(column_of, _kept(sweep)), "metric", "flops"])
    where = [
        f"{line['metric']}{''.join(f', {axis}={line[column_of(axis)]}' for axis in _kept(sweep))}: "
        f"{number(line['flops'])} FLOPs"
        for line in frame.to_dict("records")
    ]
    said = (
        "Read from the curves, on the line between two validations, at the largest FLOPs that all finished "
        "trials have reached that are compared with each other. Settings that differ in other axes than "
        "the baseline's are not: they have FLOPs of their own. A value amid a curve is that of a run whose "
        "learning rate has not come down yet; a run that was planned to end there would have a better one."
    )
    return Part(title, [said], where, rows, in_paper=True)


def _kept(sweep: SweepResults) -> list[str]:
    """The axes along which settings are kept apart."""
    return [axis for axis in sweep.axes if sweep.baseline and axis not in sweep.baseline]


def _cost_of_settings(sweep: SweepResults, trials: DataFrame) -> Part:
    done = trials[trials["state"] == "done"]
    rows = []
    for setting in sweep.settings():
        own = done
        for axis, label in axes_of(sweep, setting).items():
            own = own[own[axis] == label]
        means = {column: own[column].mean() if len(own) else math.nan for column in COST}
        rows.append({**axes_of(sweep, setting), "trials": str(len(own)), **_cost(means)})
    return Part("Cost of a setting", ["Means over its finished trials."], rows=rows, in_paper=True)


def _cost_of_trials(trials: DataFrame) -> Part:
    rows = []
    for line in trials.to_dict("records"):
        cost = _cost(line)
        if line["attempts_unseen"]:
            cost["seconds"] = f"≥ {cost['seconds']}"
        rows.append({"trial": line["trial"], "state": line["state"], **cost})
    said = (
        "Seconds are those from the start to the end of all attempts; with ≥ where nobody saw an attempt "
        "end. Training seconds, steps, tokens and FLOPs are of what was logged, and leave out what a "
        "resumed trial did twice."
    )
    return Part("Cost of each trial", [said], rows=rows)


def _cost(line: dict[str, Any]) -> Row:
    digits = {"attempts": lambda value: f"{value:g}"}
    return {
        {"training_seconds": "training seconds", "flops": "FLOPs"}.get(name, name): digits.get(name, count)(
            line[name]
        )
        for name in COST
    }


def _versions(sweep: SweepResults) -> Iterator[Part]:
    """What all trials ran with, where they differ, and what each changed."""
    started = [trial for trial in sweep.trials if trial.recipe]
    names = list(dict.fromkeys(name for trial in started for name in trial.versions))
    found = {name: {trial.versions.get(name, "–") for trial in started} for name in names}
    differ = [name for name in names if len(found[name]) > 1]
    points = [f"{name}: {next(iter(found[name]))}" for name in names if name not in differ]
    said = f"Of all {len(started)} trials that were started." if started else "No trial was started."
    rows = [
        {"trial": trial.name, **{name: trial.versions.get(name, "–") for name in differ}}
        for trial in (started if differ else [])
    ]
    if differ:
        said += f" They differ in {', '.join(differ)}, so the comparison is not of the settings alone."
    yield Part("Versions", [said], points, rows)
    changes = [
        {"trial": trial.name, "changes": " ".join(f"{key}={value}" for key, value in trial.changes.items())}
        for trial in sweep.trials
    ]
    yield Part("Recipes", ["What each trial changes; resolved recipes are in recipes/."], rows=changes)
