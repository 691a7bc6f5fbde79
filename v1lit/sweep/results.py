"""What a sweep has left on the disk: its trials, how each ended, what it cost, and what it measured."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

from v1lit.sweep.curves import Point, read_curve
from v1lit.sweep.folder import FILE, SweepFolder, SweepFolderError
from v1lit.sweep.ledger import DONE, STARTED, Ledger, pasts

LARGEST = 64 * 2**20
"""Bytes of a file that are read; a larger one is none that v1lit has written."""
NOT_STARTED, NO_END = "not started", "running or broken off"
RECIPE = "recipe.yaml"
NONE = "-"
"""Stands for the label of an axis that a setting does not have."""
COLUMNS = (
    *("trial", "seed", "metric", "value", "mean", "deviation", "seeds", "planned", "flops", "baseline"),
    *("difference", "low", "high", "t_low", "t_high", "level", "covers_at_most", "clear", "pairs", "state"),
    *("attempts", "seconds", "attempts_unseen", "training_seconds", "steps", "tokens"),
)
"""Of tables of results, beside those of the axes."""
Setting = tuple[tuple[str, str], ...]
"""A label on every axis that there is."""


@dataclass
class TrialResult:
    """One trial, as its folder and the ledger have it."""

    name: str
    settings: dict[str, str]
    """Its label on every axis that it has."""
    seed: int
    changes: dict[str, Any]
    """What it changes in the base recipe, by key."""
    state: str = NOT_STARTED
    """`done`, `failed`, `stopped`, or in words that it has not begun or not ended."""
    attempts: int = 0
    """How often it was started."""
    why: str = ""
    """What its last event says of it, such as the last line that it has printed."""
    seconds: float = 0.0
    """From start to end, over all attempts whose end was seen."""
    unended: int = 0
    """Attempts whose end nobody saw, so that their seconds are not known."""
    final: dict[str, float] = field(default_factory=dict)
    """What `metrics.json` says."""
    curve: list[Point] = field(default_factory=list)
    """What was logged on the way, by step."""
    recipe: str = ""
    """The resolved recipe, as it was last started; empty where there is none."""
    versions: dict[str, str] = field(default_factory=dict)
    """From the head of the recipe: git revision, platform, and the version of each package."""

    @property
    def setting(self) -> Setting:
        """Its labels, to compare and to group by."""
        return tuple(self.settings.items())

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return self.state == DONE

    def value(self, metric: str) -> float:
        """The metric at the end: from `metrics.json`, else as last logged; NaN where it is in neither."""
        if metric in self.final:
            return self.final[metric]
        logged = [point.values[metric] for point in self.curve if metric in point.values]
        return logged[-1] if logged else math.nan


@dataclass
class SweepResults:
    """A sweep, read from its folder."""

    name: str
    recipe: str
    axes: dict[str, list[str]]
    """The labels of each axis."""
    metrics: list[str]
    baseline: dict[str, str] | None
    """By axis the label that others are compared with."""
    budget: dict[str, Any]
    trials: list[TrialResult]

    def settings(self) -> list[dict[str, str]]:
        """Every combination of labels that has a trial, in the order of the trials."""
        return [dict(setting) for setting in dict.fromkeys(trial.setting for trial in self.trials)]

    def baseline_of(self, setting: Mapping[str, str]) -> Setting | None:
        """The setting that this one is compared with: the same but for the labels that the baseline names.

        Where no trial has such a setting, the one that lacks axes of this one, but is the same in all others:
        axes may be there for some labels only. None without a baseline, for a baseline itself, and where
        there is no such setting, or more than one.
        """
        chosen = self.baseline or {}
        wanted = {**setting, **chosen}
        like = [other for other in self.settings() if chosen.items() <= other.items() <= wanted.items()]
        found = [other for other in like if other == wanted] or like
        return None if len(found) != 1 or found[0] == dict(setting) else tuple(found[0].items())

    def group_of(self, setting: Mapping[str, str]) -> Setting:
        """What is compared with each other: the baseline's labels on the axes that are not chosen by it.

        Without a baseline everything is one group.
        """
        if not self.baseline:
            return ()
        base = self.baseline_of(setting)
        return tuple((axis, label) for axis, label in base or setting.items() if axis not in self.baseline)

    def labels(self, setting: Mapping[str, str]) -> dict[str, str]:
        """By column the label on every axis, `-` where the setting has none."""
        return {column_of(axis): setting.get(axis, NONE) for axis in self.axes}


def column_of(axis: str) -> str:
    """The column of an axis, which no other column is called."""
    return f"axis {axis}" if axis in COLUMNS else axis


def in_words(setting: Mapping[str, str]) -> str:
    """A setting as text: `family=qwen, strategy=crop`."""
    return ", ".join(f"{axis}={label}" for axis, label in setting.items()) or "the base recipe"


def read_sweep_results(path: Path) -> SweepResults:
    """Read the folder of a sweep. Raises SweepFolderError where it is none or says what cannot be used."""
    folder = SweepFolder(path)
    content = folder.described()
    try:
        results = SweepResults(
            name=str(content["name"]),
            recipe=str(content["recipe"]),
            axes={str(axis): [str(label) for label in labels] for axis, labels in content["axes"].items()},
            metrics=[str(metric) for metric in content["metrics"]],
            baseline=_texts(content["baseline"]) if content.get("baseline") else None,
            budget=dict(content.get("budget") or {}),
            trials=[_trial(given) for given in content["trials"]],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SweepFolderError(
            f"{path / FILE} does not describe a sweep: {type(error).__name__}: {error}\n"
            "`v1lit sweep` writes it: start the sweep anew in another folder"
        ) from error
    _read_ledger(Ledger(path), results.trials)
    for trial in results.trials:
        _read_folder(folder.trials / trial.name, trial)
    return results


def _trial(given: Mapping[str, Any]) -> TrialResult:
    name = str(given["name"])
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"trial {name!r} has no name of a folder inside the sweep's")
    return TrialResult(name, _texts(given["settings"]), int(given["seed"]), dict(given["changes"]))


def _texts(labels: Mapping[str, Any]) -> dict[str, str]:
    return {str(axis): str(label) for axis, label in labels.items()}


def _read_ledger(ledger: Ledger, trials: Iterable[TrialResult]) -> None:
    """Put what the ledger says into the trials."""
    events = ledger.events()
    seen = Counter(event["trial"] for event in events if event["state"] != STARTED and "seconds" in event)
    past = pasts(events)
    for trial in trials:
        known = past[trial.name]
        trial.state = {"": NOT_STARTED, STARTED: NO_END}.get(known.state, known.state)
        trial.attempts, trial.seconds = known.starts, known.seconds
        trial.unended = known.starts - seen[trial.name]
        trial.why = str(known.last.get("why") or "")


def _read_folder(folder: Path, trial: TrialResult) -> None:
    if (path := folder / "metrics.json").is_file():
        try:
            content = json.loads(_text(path))
            trial.final = {
                name: math.nan if value is None else float(value) for name, value in content.items()
            }
        except (ValueError, TypeError, AttributeError):
            trial.final = {}  # named in the report as a metric that is missing
    trial.curve = read_curve([path for path in numbered(folder, "csv") if (path / "metrics.csv").is_file()])
    if recipes := numbered(folder, RECIPE):
        trial.recipe = _text(recipes[-1])
        lines = takewhile(lambda line: line.startswith("# "), trial.recipe.splitlines())
        heads = {name: text for name, sign, text in (line[2:].partition(": ") for line in lines) if sign}
        trial.versions = {name: text for name, text in heads.items() if name not in ("command", "seed")}


def numbered(folder: Path, name: str) -> list[Path]:
    """What has this name in a folder, or `NAME-2`, `NAME-3`, ... as resumed runs call it; oldest first."""
    stem, suffix = PurePath(name).stem, PurePath(name).suffix
    pattern = re.compile(rf"{re.escape(stem)}(?:-(\d+))?{re.escape(suffix)}")
    found = [(pattern.fullmatch(path.name), path) for path in folder.glob(f"{stem}*{suffix}")]
    return [path for _, path in sorted((int(match[1] or 1), path) for match, path in found if match)]


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > LARGEST:
        raise SweepFolderError(f"{path} has {size / 2**20:.0f} MiB; at most {LARGEST // 2**20} are read")
    return path.read_text(encoding="utf-8", errors="replace")
