"""What a sweep file says: a base recipe, the axes in which trials differ, seeds, one budget for all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from v1lit.errors import OptionError, did_you_mean, name_allowed

KEYS = ("name", "base", "changes", "axes", "seeds", "budget", "metrics", "baseline")
BUDGETS = ("steps", "tokens", "flops", "seconds")
VALUES, ONLY = "values", "only"
"""Words of an axis in its long form, which no label can have."""
OWN = ("run.folder", "run.name", "run.resume", "seed_everything")
"""Keys that every trial gets from the sweep."""
ENDS = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_time")
"""Keys that say where a run ends, which the budget does."""

Find = Callable[[str, Path], Path | None]
"""Finds the file that a text below a folder means, shipped files included; None where there is none."""
Only = Mapping[str, tuple[str, ...]]
"""Other axes, and the labels there with which something goes."""


@dataclass(frozen=True)
class Choice:
    """One label of an axis."""

    label: str
    """As tables and folders name it."""
    changes: Mapping[str, Any]
    """What it changes, by key of the recipe."""
    only: Only
    """Labels of other axes with which it goes; an empty mapping where it goes with all."""


@dataclass(frozen=True)
class Axis:
    """What trials differ in: a key of the recipe, or a name for sets of changes."""

    name: str
    choices: tuple[Choice, ...]
    only: Only
    """Labels of other axes for which this one is there; other trials have nothing of it."""


@dataclass(frozen=True)
class Budget:
    """How much every trial may use."""

    kind: str
    """`steps`, `tokens`, `flops` or `seconds`."""
    amount: float


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read."""

    name: str
    base: str
    """The recipe that all trials change: a path, or the bare name of a shipped one."""
    budget: Budget
    changes: Mapping[str, Any] = field(default_factory=dict)
    """For all trials, by key of the recipe."""
    axes: tuple[Axis, ...] = ()
    seeds: tuple[int, ...] = (0,)
    metrics: tuple[str, ...] = ("val/loss",)
    """Names in `metrics.json` that are compared; the first one is shown while trials run."""
    baseline: Mapping[str, str] | None = None
    """By axis the label that others are compared with."""


def read_sweep(content: Any, path: Path, find: Find) -> Sweep:
    """What the sweep file `path` says, of which this is the content.

    Paths of recipe and parts are made such that they can be typed. Raises OptionError naming the key.
    """
    if not isinstance(content, dict):
        raise OptionError("base", None, "a sweep file is a mapping of base, axes, seeds, budget; this is not")
    for key in content:
        if key not in KEYS:
            raise OptionError(str(key), content[key], f"no such key of a sweep; {name_allowed(key, KEYS)}")
    reader = _Reader(path.parent, find)
    axes = tuple(reader.axis(str(name), given) for name, given in _mapping("axes", content).items())
    sweep = Sweep(
        name=_name(content.get("name", path.stem)),
        base=reader.base(content.get("base")),
        budget=_budget(content.get("budget")),
        changes=reader.changes("changes", content.get("changes") or {}),
        axes=axes,
        seeds=_seeds(content.get("seeds", [0])),
        metrics=_metrics(content.get("metrics", ["val/loss"])),
        baseline=_labels("baseline", content["baseline"], axes) if content.get("baseline") else None,
    )
    _check(sweep)
    return sweep


class _Reader:
    """Reads changes, whose parts lie relative to the sweep file.

    Args:
        folder: of the sweep file.
        find: finds files.
    """

    def __init__(self, folder: Path, find: Find) -> None:
        self.folder, self.find = folder, find

    def base(self, given: Any) -> str:
        if not isinstance(given, str) or not given:
            raise OptionError("base", given, "give the recipe that the trials change: a path or a bare name")
        place = self.find(given, self.folder)
        return given if place is None else str(place)

    def axis(self, name: str, given: Any) -> Axis:
        key = f"axes.{name}"
        only: Any = {}
        if isinstance(given, dict) and VALUES in given:
            if unknown := set(given) - {VALUES, ONLY}:
                raise OptionError(f"{key}.{min(unknown)}", given[min(unknown)],
                                  f"beside {VALUES} only {ONLY} is known here")  # fmt: skip
            only, given = given.get(ONLY) or {}, given[VALUES]
        if isinstance(given, list):
            choices = [self._value(name, value) for value in given]
        elif isinstance(given, dict):
            only = given.get(ONLY, only) or {}
            choices = [self._label(key, label, changes) for label, changes in given.items() if label != ONLY]
        else:
            raise OptionError(key, given, "give a list of values of this key, or labels with their changes")
        if not choices:
            raise OptionError(key, given, "an axis has at least one value")
        labels = [choice.label for choice in choices]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise OptionError(key, given, f"{twice!r} is there twice")
        return Axis(name, tuple(choices), _only(f"{key}.{ONLY}", only))

    def _value(self, name: str, value: Any) -> Choice:
        if isinstance(value, dict | list):
            raise OptionError(f"axes.{name}", value, "lists and mappings need a label: {label: {key: value}}")
        return Choice(label_of(value), self.changes(f"axes.{name}", {name: value}), {})

    def _label(self, key: str, label: Any, given: Any) -> Choice:
        given = {} if given is None else given
        if not isinstance(given, dict):
            raise OptionError(f"{key}.{label}", given, "a label has the keys that it changes: {key: value}")
        only = given.get(ONLY) or {}
        changes = {name: value for name, value in given.items() if name != ONLY}
        return Choice(label_of(label), self.changes(f"{key}.{label}", changes),
                      _only(f"{key}.{label}.{ONLY}", only))  # fmt: skip

    def changes(self, key: str, given: Any) -> dict[str, Any]:
        """Changes with the paths of their parts such that they can be typed."""
        if not isinstance(given, dict):
            raise OptionError(key, given, "give keys of the recipe with their values: {key: value}")
        for name in given:
            if name in OWN or name in ENDS:
                why = "the budget ends trials" if name in ENDS else "the sweep sets it for each trial"
                raise OptionError(f"{key}.{name}", given[name], why)
            if not re.fullmatch(r"[^\s=.\-][^\s=.]*(\.[^\s=.]+)*", str(name)):
                raise OptionError(f"{key}.{name}", given[name], "no key such as model.pointer.width")
        return {str(name): self._placed(f"{key}.{name}", value) for name, value in given.items()}

    def _placed(self, key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {str(name): self._placed(f"{key}.{name}", item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._placed(f"{key}.{index}", item) for index, item in enumerate(value)]
        if not isinstance(value, str) or not value.endswith((".yaml", ".yml")) or "${" in value:
            return value
        place = self.find(value, self.folder)
        if place is None:
            raise OptionError(key, value, f"there is no such part (looked below {self.folder})")
        return str(place)


def label_of(value: Any) -> str:
    """How tables name a value of a recipe: as YAML writes it, a part by its bare name."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    return Path(text).stem if text.endswith((".yaml", ".yml")) else text


def _only(key: str, given: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(given, dict):
        raise OptionError(key, given, "give {other axis: [labels]}")
    listed = {str(axis): labels if isinstance(labels, list) else [labels] for axis, labels in given.items()}
    return {axis: tuple(map(label_of, labels)) for axis, labels in listed.items()}


def _mapping(key: str, content: Mapping[str, Any]) -> dict[Any, Any]:
    given = content.get(key) or {}
    if not isinstance(given, dict):
        raise OptionError(key, given, "give a mapping")
    return given


def _name(given: Any) -> str:
    if not isinstance(given, str) or not re.fullmatch(r"[\w.+-]+", given) or given.startswith("."):
        raise OptionError("name", given, "a name has letters, digits, '_', '-', '+' and '.'")
    return given


def _budget(given: Any) -> Budget:
    why = f"give exactly one of {', '.join(BUDGETS)}, such as {{steps: 1000}}"
    if not isinstance(given, dict) or len(given) != 1:
        raise OptionError("budget", given, why)
    ((kind, amount),) = given.items()
    if kind not in BUDGETS:
        raise OptionError(f"budget.{kind}", amount, f"{why}{did_you_mean(kind, BUDGETS)}")
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < float("inf"):
        raise OptionError(f"budget.{kind}", amount, "give a number above 0")
    if kind == "steps" and amount != int(amount):
        raise OptionError("budget.steps", amount, "give a whole number")
    return Budget(str(kind), amount)


def _seeds(given: Any) -> tuple[int, ...]:
    whole = isinstance(given, list) and all(type(seed) is int for seed in given)
    if not whole or not given or min(given) < 0 or len(set(given)) < len(given):
        raise OptionError("seeds", given, "give different whole numbers from 0 on, such as [0, 1, 2]")
    return tuple(given)


def _metrics(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
        raise OptionError("metrics", given, "give names in metrics.json, such as [val/answer_accuracy]")
    return tuple(given)


def _labels(key: str, given: Any, axes: tuple[Axis, ...]) -> dict[str, str]:
    if not isinstance(given, dict):
        raise OptionError(key, given, "give {axis: label}")
    return {str(axis): label_of(label) for axis, label in given.items()}


def _check(sweep: Sweep) -> None:
    """Raises OptionError where a condition or the baseline names what is not there."""
    labels = {axis.name: [choice.label for choice in axis.choices] for axis in sweep.axes}

    def check(key: str, named: Mapping[str, tuple[str, ...]], itself: str = "") -> None:
        for axis, wanted in named.items():
            if axis not in labels or axis == itself:
                raise OptionError(f"{key}.{axis}", list(wanted),
                                  f"no other axis; {name_allowed(axis, set(labels) - {itself})}")  # fmt: skip
            for label in wanted:
                if label not in labels[axis]:
                    why = f"no label of it; {name_allowed(label, labels[axis])}"
                    raise OptionError(f"{key}.{axis}", label, why)

    for number, axis in enumerate(sweep.axes):
        check(f"axes.{axis.name}.{ONLY}", axis.only, axis.name)
        for choice in axis.choices:
            check(f"axes.{axis.name}.{choice.label}.{ONLY}", choice.only, axis.name)
        for other in sweep.axes[:number]:
            if shared := _keys(axis) & _keys(other):
                why = f"axis {other.name} changes that as well"
                raise OptionError(f"axes.{axis.name}", sorted(shared), why)
    if sweep.baseline is not None:
        check("baseline", {axis: (label,) for axis, label in sweep.baseline.items()})


def _keys(axis: Axis) -> set[str]:
    return {key for choice in axis.choices for key in choice.changes}
