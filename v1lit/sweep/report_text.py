"""What a report of a sweep says, section by section, before it becomes Markdown, HTML or LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from v1lit.sweep.grid import as_typed
from v1lit.sweep.report_tables import Tables
from v1lit.sweep.results import SweepResults, column_of, in_words
from v1lit.sweep.statistics import most_covered

if TYPE_CHECKING:
    from pandas import DataFrame

Row = dict[str, str]
READING = [
    "A difference is the mean, with the deviation, over pairs of runs of the same seed: the setting less "
    "its baseline. Its two intervals are the bootstrap's, between percentiles of the means of all draws of "
    "the pairs with replacement (up to 8 pairs every draw is counted), and Student's, which takes the "
    "differences to be normally distributed. Clear is a difference whose two intervals both leave out zero. "
    "In figures, thick lines are the bootstrap's intervals, and thin ones Student's.",
    "The levels are corrected for the number of comparisons of a table (Bonferroni): this holds however the "
    "comparisons depend on each other, and those that share a baseline do.",
    "The intervals do not know of the held-out examples: they say what other seeds would give on these "
    "examples, not what other examples would.",
]
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


def make_parts(sweep: SweepResults, tables: Tables, drawn: Mapping[str, Sequence[str]]) -> list[Part]:
    """All sections of a report; `drawn`: names of figures by what they show, `curves` or `differences`."""
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
    if sweep.baseline:
        parts.append(Part("How to read the differences", READING))
        parts += _differences("", sweep, tables.differences, tables.pooled, tables.level)
        parts[-1].figures += drawn["differences"]
    else:
        how = "No baseline was chosen; choose one with: v1lit sweep report FOLDER --baseline AXIS=LABEL"
        parts.append(Part("Differences from the baseline", [how]))
    parts.append(_equal(sweep, tables))
    if len(tables.equal_differences):
        equal = tables.equal_differences, tables.equal_pooled
        parts += _differences(" at equal FLOPs", sweep, *equal, tables.level)
    curves = (
        "Thick lines are means over seeds, thin ones single seeds. Tokens are real ones, without padding. "
        "FLOPs are counted by formula (PaLM, appendix B), forward and backward. Seconds are those of "
        "training, without validation, checkpoints and the start. A metric that is measured at the end "
        "only has a point for each seed."
    )
    said = [curves] if drawn["curves"] else ["No finished trial has a value."]
    parts.append(Part("Curves", said, figures=[*drawn["curves"]]))
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


def _differences(
    where: str, sweep: SweepResults, frame: DataFrame, pooled: DataFrame, level: float
) -> Iterator[Part]:
    """A section for differences of settings, and one over all groups where there are several."""
    title = f"Differences from the baseline{where}"
    if not len(frame):
        yield Part(title, ["No setting has a baseline."])
        return
    if len(pooled):
        kept = " and ".join(_kept(sweep))
        said = (
            f"Over every {kept} together: a pair is two runs of the same seed and the same {kept}. It says "
            "what is gained over these on average; where the gain differs between them, the deviation says "
            "so."
        )
        rows = _rows_of_differences([axis for axis in sweep.axes if column_of(axis) in pooled], pooled)
        yield Part(f"{title}, over every {kept}", [said, _level(pooled, level)], rows=rows, in_paper=True)
    rows = _rows_of_differences(list(sweep.axes), frame)
    yield Part(title, [_level(frame, level)], rows=rows, in_paper=True)


def _rows_of_differences(axes: Sequence[str], frame: DataFrame) -> list[Row]:
    return [
        {
            **{column_of(axis): line[column_of(axis)] for axis in axes},
            "metric": line["metric"],
            "difference": f"{number(line['difference'])} ± {number(line['deviation'])}",
            "bootstrap": _interval(line["low"], line["high"]),
            "Student": _interval(line["t_low"], line["t_high"]),
            "pairs": str(line["pairs"]),
            "clear": "yes" if line["clear"] else "no",
        }
        for line in frame.to_dict("records")
    ]


def _interval(low: float, high: float) -> str:
    return "–" if math.isnan(low) else f"[{number(low)}, {number(high)}]"


def _level(frame: DataFrame, level: float) -> str:
    """At which level the intervals of a table are made, and whether so few pairs can carry it."""
    each, pairs = float(frame["level"].iloc[0]), int(frame["pairs"].max())
    said = f"{len(frame)} comparisons, each at {100 * each:.4g} %, so that all hold together at {level:.0%}."
    if pairs and (widest := most_covered(pairs)) < each:
        said += (
            f" {pairs} pairs cannot carry a bootstrap interval at that level: it is at most their range, "
            f"which has the median difference in it in at most {widest:.1%} of sweeps. Read it as the range "
            "of what was run; claims about other seeds rest on Student's interval, or need more seeds."
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
    kept = {axis for setting in sweep.settings() for axis, _ in sweep.group_of(setting)}
    return [axis for axis in sweep.axes if axis in kept]


def _cost_of_settings(sweep: SweepResults, trials: DataFrame) -> Part:
    done = trials[trials["state"] == "done"]
    rows = []
    for setting in sweep.settings():
        own = done
        for axis, label in sweep.labels(setting).items():
            own = own[own[axis] == label]
        means = {column: own[column].mean() if len(own) else math.nan for column in COST}
        rows.append({**sweep.labels(setting), "trials": str(len(own)), **_cost(means)})
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
    yield _changes(sweep)


def _changes(sweep: SweepResults) -> Part:
    """What all trials change in the base recipe, and what each changes beside it."""
    typed = [{key: as_typed(value) for key, value in trial.changes.items()} for trial in sweep.trials]
    common = set.intersection(*(set(changes.items()) for changes in typed)) if typed else set()
    rows = [
        {
            "trial": trial.name,
            "changes": " ".join(f"{key}={text}" for key, text in sorted(changes.items() - common)),
        }
        for trial, changes in zip(sweep.trials, typed, strict=True)
    ]
    points = [f"all trials: {key}={text}" for key, text in sorted(common)]
    said = "What the trials change in the base recipe; the resolved recipe of each is in recipes/."
    return Part("Recipes", [said], points, rows)
