"""The tables of a report of a sweep, as numbers: settings, differences, costs, curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from v1lit.sweep.curves import AMOUNTS, reached, read_at
from v1lit.sweep.results import SweepResults, TrialResult
from v1lit.sweep.statistics import compare, corrected_level, most_covered

if TYPE_CHECKING:
    from pandas import DataFrame

NONE = "-"
"""Stands for the label of an axis that a setting does not have."""
TAKEN = {
    "trial",
    "seed",
    "metric",
    "value",
    "mean",
    "deviation",
    "seeds",
    "planned",
    "flops",
    "baseline",
    "difference",
    "low",
    "high",
    "t_low",
    "t_high",
    "level",
    "covers_at_most",
    "clear",
    "state",
    "attempts",
    "seconds",
    "attempts_unseen",
    "training_seconds",
    "steps",
    "tokens",
}
"""Columns that are no axes."""
Setting = tuple[tuple[str, str], ...]
Group = tuple[tuple[str, str], ...]
"""What a setting and its baseline have in common: its labels on the axes that the baseline does not name."""
Read = Callable[[TrialResult, str], float]
"""The value of a metric in a trial."""


@dataclass
class Tables:
    """All tables of a report."""

    values: DataFrame
    """A row for each finished trial and metric: the value at its end."""
    settings: DataFrame
    """A row for each setting and metric: mean and deviation over seeds."""
    differences: DataFrame
    """A row for each comparison with the baseline; empty without one."""
    equal_settings: DataFrame
    """As `settings`, read from the curves where all have used the same FLOPs."""
    equal_differences: DataFrame
    """As `differences`, there."""
    trials: DataFrame
    """A row for each trial, finished or not: state and cost."""
    curves: DataFrame
    """A row for each point of a curve of a finished trial."""
    versions: DataFrame
    """A row for each trial that was started: what it ran with."""
    level: float = 0.95
    """Of all intervals of one table together."""
    problems: list[str] = field(default_factory=list)
    """What is missing in the tables, in words."""


def make_tables(sweep: SweepResults, level: float = 0.95) -> Tables:
    """Compute all tables of a sweep; `level` is that of all intervals of one table together."""
    import pandas as pd

    problems = list(_unfinished(sweep))
    end = _values(sweep, TrialResult.value)
    problems += [
        f"trial {row['trial']} is done, but has no {row['metric']}" for row in end if math.isnan(row["value"])
    ]
    problems += _missing_baselines(sweep)
    equal = _EqualFlops(sweep)
    problems += equal.problems
    at_equal = [row for row in _values(sweep, equal.read) if (row["group"], row["metric"]) in equal.flops]
    return Tables(
        values=pd.DataFrame(_with_axes(sweep, end, "trial", "seed", "metric", "value")),
        settings=_over_seeds(sweep, end),
        differences=_differences(sweep, end, level),
        equal_settings=_over_seeds(sweep, at_equal, equal.flops),
        equal_differences=_differences(sweep, at_equal, level, equal.flops),
        trials=pd.DataFrame(_costs(sweep)),
        curves=pd.DataFrame(_curves(sweep)),
        versions=pd.DataFrame([{"trial": one.name, **one.versions} for one in sweep.trials if one.recipe]),
        level=level,
        problems=problems,
    )


def group_of(sweep: SweepResults, setting: Mapping[str, str]) -> Group:
    """What a setting has in common with its baseline."""
    return tuple((axis, label) for axis, label in setting.items() if axis not in (sweep.baseline or {}))


def baseline_of(sweep: SweepResults, setting: Mapping[str, str]) -> Setting | None:
    """The setting that this one is compared with: the same but for the labels that the baseline names.

    None without a baseline, for a baseline itself, and where no trial has such a setting. An axis that a
    setting does not have is none of its baseline's either, unless the baseline names it.
    """
    wanted = {**setting, **(sweep.baseline or {})}
    there = next((other for other in sweep.settings() if other == wanted), None)
    return None if there is None or there == dict(setting) else tuple(there.items())


def axes_of(sweep: SweepResults, setting: Mapping[str, str]) -> dict[str, str]:
    """By column the label on every axis of the sweep, `-` where the setting has none."""
    return {column_of(axis): setting.get(axis, NONE) for axis in sweep.axes}


def column_of(axis: str) -> str:
    """The column of an axis, which no other column is called."""
    return f"axis {axis}" if axis in TAKEN else axis


def _unfinished(sweep: SweepResults) -> Iterator[str]:
    for trial in sweep.trials:
        if not trial.done:
            tried = f" (attempts: {trial.attempts})" if trial.attempts else ""
            why = f": {trial.why}" if trial.why else ""
            yield f"trial {trial.name} is left out of all means; it is {trial.state}{tried}{why}"


def _missing_baselines(sweep: SweepResults) -> Iterator[str]:
    if not sweep.baseline:
        return
    for setting in sweep.settings():
        is_baseline = all(setting.get(axis) == label for axis, label in sweep.baseline.items())
        if not is_baseline and baseline_of(sweep, setting) is None:
            yield f"{in_words(setting)} has no baseline: no trial is the same with {in_words(sweep.baseline)}"


def in_words(setting: Mapping[str, str]) -> str:
    """A setting as text: `family=qwen, strategy=crop`."""
    return ", ".join(f"{axis}={label}" for axis, label in setting.items()) or "the base recipe"


# ---- values over seeds -------------------------------------------------------------------------------------


def _values(sweep: SweepResults, read: Read) -> list[dict[str, Any]]:
    """A row for each finished trial and metric."""
    return [
        {
            "trial": trial.name,
            "setting": trial.setting,
            "group": group_of(sweep, trial.settings),
            "seed": trial.seed,
            "metric": metric,
            "value": read(trial, metric),
        }
        for trial in sweep.trials
        if trial.done
        for metric in sweep.metrics
    ]


def _with_axes(sweep: SweepResults, rows: Sequence[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{**axes_of(sweep, dict(row["setting"])), **{name: row[name] for name in names}} for row in rows]


def _over_seeds(
    sweep: SweepResults,
    rows: Sequence[Mapping[str, Any]],
    flops: Mapping[tuple[Group, str], float] | None = None,
) -> DataFrame:
    """Mean and deviation (n - 1) of every setting and metric, and of how many of the planned seeds.

    With `flops` by group and metric, only of these, and with them.
    """
    import pandas as pd

    frame = pd.DataFrame(rows, columns=["setting", "metric", "value"])
    found = frame.groupby(["setting", "metric"])["value"].agg(["mean", "std", "count"]).to_dict("index")
    lines = []
    for setting in sweep.settings():
        planned = sum(trial.settings == setting for trial in sweep.trials)
        for metric in sweep.metrics:
            key = (tuple(setting.items()), metric)
            of_group = (group_of(sweep, setting), metric)
            if flops is not None and of_group not in flops:
                continue
            mean, deviation, count = found.get(key, {"": math.nan, "std": math.nan, "count": 0}).values()
            at = {} if flops is None else {"flops": flops[of_group]}
            what = {"metric": metric, "mean": mean, "deviation": deviation}
            lines.append({**axes_of(sweep, setting), **at, **what, "seeds": int(count), "planned": planned})
    return pd.DataFrame(lines)


def _differences(
    sweep: SweepResults,
    rows: Sequence[Mapping[str, Any]],
    level: float,
    flops: Mapping[tuple[Group, str], float] | None = None,
) -> DataFrame:
    """Every setting's paired differences from its baseline, with intervals corrected for their number.

    With `flops` by group and metric, only of these, and with them.
    """
    import pandas as pd

    values = {(row["setting"], row["metric"], row["seed"]): row["value"] for row in rows}
    seeds = dict.fromkeys(trial.seed for trial in sweep.trials)
    pairs = [
        (setting, base, metric, (group_of(sweep, setting), metric))
        for setting in sweep.settings()
        if (base := baseline_of(sweep, setting)) is not None
        for metric in sweep.metrics
        if flops is None or (group_of(sweep, setting), metric) in flops
    ]
    each = corrected_level(level, len(pairs))
    lines = []
    for setting, base, metric, of_group in pairs:
        own = tuple(setting.items())
        both = [
            values.get((own, metric, seed), math.nan) - values.get((base, metric, seed), math.nan)
            for seed in seeds
        ]
        found = compare(both, each)
        at = {} if flops is None else {"flops": flops[of_group]}
        lines.append(
            {
                **axes_of(sweep, setting),
                "baseline": in_words(dict(base)),
                **at,
                "metric": metric,
                "difference": found.mean,
                "deviation": found.deviation,
                "low": found.low,
                "high": found.high,
                "t_low": found.t_low,
                "t_high": found.t_high,
                "seeds": found.seeds,
                "level": each,
                "covers_at_most": most_covered(found.seeds),
                "clear": found.clear,
            }
        )
    return pd.DataFrame(lines)


class _EqualFlops:
    """By group and metric the largest FLOPs at which every finished trial of the group has the metric.

    Args:
        sweep: whose curves are read.
    """

    def __init__(self, sweep: SweepResults) -> None:
        self.sweep = sweep
        self.flops: dict[tuple[Group, str], float] = {}
        self.problems: list[str] = []
        done = [trial for trial in sweep.trials if trial.done]
        groups = dict.fromkeys(group_of(sweep, trial.settings) for trial in done)
        for metric in sweep.metrics:
            if done and not any(metric in point.values for trial in done for point in trial.curve):
                why = f"{metric} is measured at the end only, so it cannot be read at equal FLOPs"
                self.problems.append(why)
                continue
            for group in groups:
                self._find(group, metric, [one for one in done if group_of(sweep, one.settings) == group])

    def _find(self, group: Group, metric: str, trials: Sequence[TrialResult]) -> None:
        ends = {trial.name: reached(trial.curve, metric, "flops") for trial in trials}
        for name in (name for name, end in ends.items() if math.isnan(end)):
            self.problems.append(f"trial {name} has logged no {metric} with FLOPs, so none at equal FLOPs")
        if known := [end for end in ends.values() if not math.isnan(end)]:
            self.flops[group, metric] = min(known)
            for trial in trials:
                if not math.isnan(ends[trial.name]) and math.isnan(self.read(trial, metric)):
                    first = f"trial {trial.name} has its first {metric} only after {min(known):.3g} FLOPs"
                    self.problems.append(f"{first}, where the others are compared")

    def read(self, trial: TrialResult, metric: str) -> float:
        """The metric of a trial at its group's FLOPs; NaN where it was not measured around them."""
        where = self.flops.get((group_of(self.sweep, trial.settings), metric), math.nan)
        return read_at(trial.curve, metric, "flops", where)


# ---- trials ------------------------------------------------------------------------------------------------


def _costs(sweep: SweepResults) -> Iterator[dict[str, Any]]:
    for trial in sweep.trials:
        last = trial.curve[-1] if trial.curve else None
        trained = {amount: math.nan if last is None else getattr(last, amount) for amount in AMOUNTS}
        yield {
            "trial": trial.name,
            **axes_of(sweep, trial.settings),
            "seed": trial.seed,
            "state": trial.state,
            "attempts": trial.attempts,
            "seconds": trial.seconds,
            "attempts_unseen": trial.unended,
            "training_seconds": trained["seconds"],
            **{amount: trained[amount] for amount in ("steps", "tokens", "flops")},
        }


def _curves(sweep: SweepResults) -> Iterator[dict[str, Any]]:
    for trial in sweep.trials:
        for point in trial.curve if trial.done else []:
            for metric in sweep.metrics:
                if metric in point.values:
                    amounts = {amount: getattr(point, amount) for amount in AMOUNTS}
                    own = {"trial": trial.name, **axes_of(sweep, trial.settings), "seed": trial.seed}
                    yield {**own, "metric": metric, **amounts, "value": point.values[metric]}
