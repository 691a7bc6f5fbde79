"""Paired differences of settings from their baselines, with intervals corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from v1lit.sweep.results import NONE, Setting, SweepResults, column_of, in_words
from v1lit.sweep.statistics import compare, corrected_level, most_covered

if TYPE_CHECKING:
    from pandas import DataFrame


class Differences:
    """Compares settings by the values of their trials.

    Args:
        sweep: whose settings are compared.
        values: rows with `setting`, `metric`, `seed` and `value`.
        level: of all intervals of one table together.
        only: groups and metrics to compare; all when not given.
    """

    def __init__(
        self,
        sweep: SweepResults,
        values: Sequence[Mapping[str, Any]],
        level: float,
        only: Collection[tuple[Setting, str]] | None = None,
    ) -> None:
        self.sweep, self.level, self.only = sweep, level, only
        self._values = {(row["setting"], row["metric"], row["seed"]): row["value"] for row in values}
        self._seeds = dict.fromkeys(trial.seed for trial in sweep.trials)

    def by_setting(self) -> DataFrame:
        """A row for each setting and metric: pairs are of the same seed."""
        found = list(self._found())
        return self._table(
            {**self.sweep.labels(setting), "baseline": in_words(dict(base)), "metric": metric}
            | {"differences": differences}
            for setting, base, metric, differences in found
        )

    def over_groups(self) -> DataFrame:
        """A row for each metric and labels in which groups do not differ: pairs of all groups and seeds.

        Empty where there is one group only.
        """
        import pandas as pd

        pooled: dict[tuple[Setting, str], list[float]] = {}
        groups = set[Setting]()
        for setting, _, metric, differences in self._found():
            group = self.sweep.group_of(setting)
            groups.add(group)
            own = tuple((axis, label) for axis, label in setting.items() if (axis, label) not in group)
            pooled.setdefault((own, metric), []).extend(differences)
        if len(groups) < 2:
            return pd.DataFrame()
        apart = {axis for group in groups for axis, _ in group}
        axes = [axis for axis in self.sweep.axes if axis not in apart]
        return self._table(
            {column_of(axis): dict(own).get(axis, NONE) for axis in axes}
            | {"baseline": in_words(self.sweep.baseline or {}), "metric": metric, "differences": differences}
            for (own, metric), differences in pooled.items()
        )

    def _found(self) -> Iterator[tuple[dict[str, str], Setting, str, list[float]]]:
        """Setting, baseline, metric, and the differences, NaN for seeds that one of both has no value of."""
        for setting in self.sweep.settings():
            base, own = self.sweep.baseline_of(setting), tuple(setting.items())
            for metric in self.sweep.metrics if base is not None else []:
                if base is None or (self.only is not None and self._group(setting, metric) not in self.only):
                    continue
                yield (
                    setting,
                    base,
                    metric,
                    [
                        self._value(own, metric, seed) - self._value(base, metric, seed)
                        for seed in self._seeds
                    ],
                )

    def _group(self, setting: Mapping[str, str], metric: str) -> tuple[Setting, str]:
        return self.sweep.group_of(setting), metric

    def _value(self, setting: Setting, metric: str, seed: int) -> float:
        value: float = self._values.get((setting, metric, seed), math.nan)
        return value

    def _table(self, rows: Iterator[dict[str, Any]]) -> DataFrame:
        """Rows with statistics in place of their differences; each interval has its share of the level."""
        import pandas as pd

        listed = list(rows)
        each = corrected_level(self.level, len(listed))
        lines = []
        for row in listed:
            found = compare(row.pop("differences"), each)
            lines.append(
                {
                    **row,
                    "difference": found.mean,
                    "deviation": found.deviation,
                    "low": found.low,
                    "high": found.high,
                    "t_low": found.t_low,
                    "t_high": found.t_high,
                    "pairs": found.pairs,
                    "level": each,
                    "covers_at_most": most_covered(found.pairs),
                    "clear": found.clear,
                }
            )
        return pd.DataFrame(lines)
