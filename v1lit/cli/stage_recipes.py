"""One stage of a recipe as the recipe of a run: where it lies, and how its mistakes are told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from v1lit.cli.errors import UserError
from v1lit.cli.recipe import Recipe, compose, flattened, read_changes, stages_of
from v1lit.cli.stage_entries import STAGE, Stage
from v1lit.cli.stage_marks import MODEL
from v1lit.training.config import RunConfig


class StageError(UserError):
    """A mistake in a stage, which its message names."""


def stage_of(recipe: str, changes: Sequence[str], name: str) -> Recipe:
    """One stage of a recipe, composed. Raises UserError, which names the stage."""
    words = [f"--{key}={value}" for key, value in read_changes(changes) if key != STAGE]
    return compose(recipe, [*words, f"--{STAGE}={name}"])


def stage_in(recipe: Recipe) -> Stage:
    """The stage that a recipe is."""
    assert recipe.stage is not None
    return recipe.stage


@contextmanager
def named(stage: Stage) -> Iterator[None]:
    """Put the name of the stage before what a UserError says."""
    try:
        yield
    except StageError:
        raise
    except UserError as error:
        raise StageError(f"stage {stage.name}: {error}") from error


def whole_run(recipe: Recipe) -> RunConfig:
    """Name, folder and resuming of the run of all stages. Raises UserError for values that cannot be."""
    group, values = group_in(recipe, "run"), {}
    for key in {"name", "folder", "resume"} & group.keys():
        value, typed = group[key], recipe.typed.get(f"run.{key}")
        if value is not None and not isinstance(value, str):
            value = typed.text if typed is not None else str(value)  # YAML takes some names for numbers
        values[key] = value
    with recipe.options():
        if "${" in str(values.get("name")):
            values["name"] = _interpolated(recipe, values["name"])
        return RunConfig(**values)


def _interpolated(recipe: Recipe, name: str) -> str:
    try:
        return str(OmegaConf.select(OmegaConf.create({**recipe.config, "name": name}), "name"))
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"run.name is {name!r} ({recipe.origin('run.name')}); {reason}") from error


def group_in(recipe: Recipe, name: str) -> dict[str, Any]:
    """A group of a composed recipe; empty where it has none, or a mistake."""
    group = recipe.config.get(name)
    return group if isinstance(group, dict) else {}


def placed(recipe: Recipe, begin_from: str | None) -> Recipe:
    """The recipe of a stage with the folder of its own run, and the model that it begins from."""
    run, stage = whole_run(recipe), stage_in(recipe)
    name = run.name or f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    config = {**recipe.config, "run": {**group_in(recipe, "run"), "name": stage.folder}}
    config["run"]["folder"] = str(Path(run.folder) / name)
    if begin_from is not None:
        config["model"] = {**group_in(recipe, "model"), "begin_from": begin_from}
    typed = {key: text for key, text in recipe.typed.items() if key not in ("run.name", "run.folder")}
    return replace(recipe, config=config, typed=typed)


def as_shown(recipe: Recipe) -> Recipe:
    """The recipe of a stage as it will be, as far as the name of its run is known; looks at no file."""
    run, stage = whole_run(recipe), stage_in(recipe)
    if run.name is None:
        return recipe
    if stage.number == 1 or group_in(recipe, "model").get("begin_from"):
        return placed(recipe, None)
    former = Stage(stage.names[stage.number - 2], stage.names)
    return placed(recipe, str(Path(run.folder) / run.name / former.folder / MODEL))


def each_stage(
    command: Callable[[Sequence[str]], int],
    argv: Sequence[str],
    recipe: str,
    changes: Sequence[str],
    alike: Sequence[str] = (),
) -> int | None:
    """Do what a command does with a recipe for each of its stages; returns the largest exit code.

    None where the recipe has no stages, or `changes` name one of them.

    Args:
        command: takes its arguments.
        argv: of the command.
        recipe: as it was typed.
        changes: that were typed.
        alike: keys, such as `data`; of stages in which these are the same it is done for the first only.
    """
    codes, seen = [], dict[str, str]()
    for name in (names := stages_of(recipe, changes)):
        own = stage_of(recipe, changes, name)
        said = flattened(own.config).items()
        kept = [pair for pair in said if any(f"{pair[0]}.".startswith(f"{key}.") for key in alike)]
        if (other := seen.setdefault(repr(sorted(kept)) if alike else name, name)) != name:
            print(f"stage {name}: as stage {other}")
            continue
        print(f"stage {name}")
        codes.append(command([*argv, f"--{STAGE}={name}"]))
    return max(codes) if names else None
