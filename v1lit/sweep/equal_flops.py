"""Where trials have used the same number of operations, and what they had reached there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from v1lit.sweep.curves import reached, read_at
from v1lit.sweep.results import Setting, SweepResults, TrialResult


class EqualFlops:
    """By group and metric the largest FLOPs at which every finished trial of the group has the metric.

    Args:
        sweep: whose curves are read.
    """

    def __init__(self, sweep: SweepResults) -> None:
        self.sweep = sweep
        self.flops: dict[tuple[Setting, str], float] = {}
        self.problems: list[str] = []
        done = [trial for trial in sweep.trials if trial.done]
        groups = dict.fromkeys(sweep.group_of(trial.settings) for trial in done)
        for metric in sweep.metrics:
            if done and not any(metric in point.values for trial in done for point in trial.curve):
                why = f"{metric} is measured at the end only, so it cannot be read at equal FLOPs"
                self.problems.append(why)
                continue
            for group in groups:
                self._find(group, metric, [one for one in done if sweep.group_of(one.settings) == group])

    def _find(self, group: Setting, metric: str, trials: Sequence[TrialResult]) -> None:
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
        where = self.flops.get((self.sweep.group_of(trial.settings), metric), math.nan)
        return read_at(trial.curve, metric, "flops", where)
