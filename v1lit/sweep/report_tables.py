"""The tables of a report of a sweep, as numbers: settings, differences, costs, curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from v1lit.sweep.curves import AMOUNTS
from v1lit.sweep.differences import Differences
from v1lit.sweep.equal_flops import EqualFlops
from v1lit.sweep.results import NOT_STARTED, Setting, SweepResults, TrialResult, in_words

if TYPE_CHECKING:
    from pandas import DataFrame


MOST_NAMES = 8
"""Trials that are named of those that nobody has started."""
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
    pooled: DataFrame
    """A row for each comparison over all groups together; empty where there is one."""
    equal_settings: DataFrame
    """As `settings`, read from the curves where all have used the same FLOPs."""
    equal_differences: DataFrame
    """As `differences`, there."""
    equal_pooled: DataFrame
    """As `pooled`, there."""
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
    equal = EqualFlops(sweep)
    problems += equal.problems
    at_equal = [row for row in _values(sweep, equal.read) if (row["group"], row["metric"]) in equal.flops]
    compared = Differences(sweep, end, level)
    compared_equal = Differences(sweep, at_equal, level, equal.flops)
    return Tables(
        values=pd.DataFrame(_with_axes(sweep, end, "trial", "seed", "metric", "value")),
        settings=_over_seeds(sweep, end),
        differences=compared.by_setting(),
        pooled=compared.over_groups(),
        equal_settings=_over_seeds(sweep, at_equal, equal.flops),
        equal_differences=compared_equal.by_setting(),
        equal_pooled=compared_equal.over_groups(),
        trials=pd.DataFrame(_costs(sweep)),
        curves=pd.DataFrame(_curves(sweep)),
        versions=pd.DataFrame([{"trial": one.name, **one.versions} for one in sweep.trials if one.recipe]),
        level=level,
        problems=problems,
    )


def _unfinished(sweep: SweepResults) -> Iterator[str]:
    waiting = [trial.name for trial in sweep.trials if trial.state == NOT_STARTED]
    if waiting:
        more = f" and {len(waiting) - MOST_NAMES} more" if len(waiting) > MOST_NAMES else ""
        named = f"{', '.join(waiting[:MOST_NAMES])}{more}"
        yield f"left out of all means, since not started, {len(waiting)} of the trials: {named}"
    for trial in sweep.trials:
        if not trial.done and trial.state != NOT_STARTED:
            tried = f" (attempts: {trial.attempts})" if trial.attempts else ""
            why = f": {trial.why}" if trial.why else ""
            yield f"trial {trial.name} is left out of all means; it is {trial.state}{tried}{why}"


def _missing_baselines(sweep: SweepResults) -> Iterator[str]:
    if not sweep.baseline:
        return
    for setting in sweep.settings():
        is_baseline = all(setting.get(axis) == label for axis, label in sweep.baseline.items())
        if not is_baseline and sweep.baseline_of(setting) is None:
            yield f"{in_words(setting)} has no baseline: no trial is the same with {in_words(sweep.baseline)}"


# ---- values over seeds -------------------------------------------------------------------------------------


def _values(sweep: SweepResults, read: Read) -> list[dict[str, Any]]:
    """A row for each finished trial and metric."""
    return [
        {
            "trial": trial.name,
            "setting": trial.setting,
            "group": sweep.group_of(trial.settings),
            "seed": trial.seed,
            "metric": metric,
            "value": read(trial, metric),
        }
        for trial in sweep.trials
        if trial.done
        for metric in sweep.metrics
    ]


def _with_axes(sweep: SweepResults, rows: Sequence[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{**sweep.labels(dict(row["setting"])), **{name: row[name] for name in names}} for row in rows]


def _over_seeds(
    sweep: SweepResults,
    rows: Sequence[Mapping[str, Any]],
    flops: Mapping[tuple[Setting, str], float] | None = None,
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
            of_group = (sweep.group_of(setting), metric)
            if flops is not None and of_group not in flops:
                continue
            mean, deviation, count = found.get(key, {"": math.nan, "std": math.nan, "count": 0}).values()
            at = {} if flops is None else {"flops": flops[of_group]}
            what = {"metric": metric, "mean": mean, "deviation": deviation}
            lines.append({**sweep.labels(setting), **at, **what, "seeds": int(count), "planned": planned})
    return pd.DataFrame(lines)


# ---- trials ------------------------------------------------------------------------------------------------


def _costs(sweep: SweepResults) -> Iterator[dict[str, Any]]:
    for trial in sweep.trials:
        last = trial.curve[-1] if trial.curve else None
        trained = {amount: math.nan if last is None else getattr(last, amount) for amount in AMOUNTS}
        yield {
            "trial": trial.name,
            **sweep.labels(trial.settings),
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
                    own = {"trial": trial.name, **sweep.labels(trial.settings), "seed": trial.seed}
                    yield {**own, "metric": metric, **amounts, "value": point.values[metric]}
