"""The trials of a sweep: every allowed combination of labels with every seed, and the command of each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from v1lit.errors import OptionError
from v1lit.sweep.config import Budget, Choice, Only, Sweep

SEED = "seed_everything"
TRIALS = "trials"
"""Of a sweep's folder: the folder with those of its trials."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    """Of its folder."""
    settings: dict[str, str]
    """Its label on every axis that it has."""
    seed: int
    changes: dict[str, Any]
    """All that it changes in the base recipe, by key; whole groups before the keys in them."""

    def plain(self) -> dict[str, Any]:
        """The trial as JSON has it."""
        return asdict(self)

    def changed(self, more: Mapping[str, Any]) -> Trial:
        """The same trial with more changes."""
        return replace(self, changes=in_order({**self.changes, **more}))

    def words(self, base: str, folder: Path) -> list[str]:
        """What follows `lightning run` in the trial's command; `folder` is the sweep's."""
        own = {"run.folder": str(folder / TRIALS), "run.name": self.name, "run.resume": "auto"}
        return [base, *(f"--{key}={as_typed(value)}" for key, value in {**self.changes, **own}.items())]


def make_trials(sweep: Sweep) -> list[Trial]:
    """The trials, in the order of the axes: all with the first seed before any with the second, and so on.

    So a report that is made meanwhile compares every setting, if with fewer seeds. Raises OptionError where
    there is no trial, or where two have the same settings.
    """
    trials: dict[str, Trial] = {}
    seen: set[tuple[tuple[str, str], ...]] = set()
    for chosen in _combinations(sweep):
        settings = {axis: choice.label for axis, choice in chosen.items()}
        if tuple(settings.items()) in seen:
            continue  # they differed in an axis that they do not have
        seen.add(tuple(settings.items()))
        changes = dict(sweep.changes)
        for choice in chosen.values():
            changes |= choice.changes
        for seed in sweep.seeds:
            name = _name(settings, seed)
            if name in trials:
                why = f"two trials would have the folder {name}; give their labels other names"
                raise OptionError("axes", [trials[name].settings, settings], why)
            of_trial = {**changes, **limits(sweep.budget), SEED: seed}
            trials[name] = Trial(name, settings, seed, in_order(of_trial))
    if not trials:
        raise OptionError("axes", [axis.name for axis in sweep.axes], "its conditions leave no trial")
    return sorted(trials.values(), key=lambda trial: sweep.seeds.index(trial.seed))


def limits(budget: Budget) -> dict[str, Any]:
    """The keys by which every trial ends where its budget is used up.

    Of tokens and flops, the steps are not known before the data are.
    """
    found: dict[str, Any] = {"trainer.max_steps": -1, "trainer.max_epochs": -1}
    if budget.kind == "steps":
        found["trainer.max_steps"] = int(budget.amount)
    if budget.kind == "seconds":
        minutes, seconds = divmod(max(1, round(budget.amount)), 60)
        hours, minutes = divmod(minutes, 60)
        days, hours = divmod(hours, 24)
        found["trainer.max_time"] = f"{days:02}:{hours:02}:{minutes:02}:{seconds:02}"
    return found


def in_order(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes with whole groups before the keys in them, which a group would replace."""
    return dict(sorted(changes.items(), key=lambda change: change[0].count(".")))


def as_typed(value: Any) -> str:
    """A value as it is typed behind `--key=`."""
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        plain = yaml.safe_load(value) == value
    except yaml.YAMLError:
        plain = False
    return value if plain else json.dumps(value)


def _combinations(sweep: Sweep) -> Iterator[dict[str, Choice]]:
    """By axis the choice, for every combination whose conditions hold."""
    conditions = {axis.name: axis.only for axis in sweep.axes}
    for choices in product(*(axis.choices for axis in sweep.axes)):
        chosen = dict(zip(conditions, choices, strict=True))
        # An axis that is left out may be a condition of another one.
        while gone := [axis for axis in chosen if not _goes(conditions[axis], chosen)]:
            for axis in gone:
                del chosen[axis]
        if all(_goes(choice.only, chosen) for choice in chosen.values()):
            yield chosen


def _goes(only: Only, chosen: Mapping[str, Choice]) -> bool:
    return all(axis in chosen and chosen[axis].label in labels for axis, labels in only.items())


def _name(settings: Mapping[str, str], seed: int) -> str:
    words = [re.sub(r"[^\w.+]+", "_", label).strip("._") or "_" for label in settings.values()]
    return "-".join([*words, f"seed{seed}"])
