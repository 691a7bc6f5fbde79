"""`lightning run` of a recipe with stages: a run for each in a folder of its own, one after another.

Each stage is trained by a process of its own, `v1lit run RECIPE --run.stage=NAME`, and so by processes that
Lightning or a launcher starts for it: nothing of one stage is left in the next but its exported model.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from v1lit.cli.errors import UserError
from v1lit.cli.recipe import Recipe, compose, compose_all, read_changes, stages_of
from v1lit.cli.stage_entries import BEGIN_FROM, FOLLOWED, STAGE, Stage
from v1lit.cli.stage_marks import (
    MODEL,
    Mark,
    changed_since,
    check_model,
    forget_mark,
    read_mark,
    write_mark,
)
from v1lit.files import free_path
from v1lit.launch.local import run_local, this_python
from v1lit.training.config import RunConfig

STOPPED = (130, 143)


class StageError(UserError):
    """A mistake in a stage, which its message names."""


# ---------------------------------------------------------------------- all of them


def run_stages(recipe: str, changes: Sequence[str], debug: bool = False) -> int:
    """Train the stages of a recipe that are not done yet, in order; returns the exit code of the last one.

    Args:
        recipe: as it was typed.
        changes: that were typed.
        debug: show tracebacks.

    Raises UserError for a stage that is done but whose recipe has changed; the last one is trained on then.
    """
    recipes = compose_all(recipe, changes)
    run = whole_run(recipes[0])
    _refuse_ranks(stage_in(recipes[0]).names)
    folder, made = folder_of_stages(run, recipes[0])
    kept = [(key, value) for key, value in read_changes(changes) if key not in ("run.name", "run.resume")]
    pairs = [*kept, ("run.name", os.path.relpath(folder, run.folder)), *resumed(run)]
    words = [recipe, *(f"--{key}={value}" for key, value in pairs), *(["--debug"] if debug else [])]
    try:
        with followed():
            for one in recipes:
                if code := _run_stage(one, folder, words):
                    return code
    finally:
        if made:
            with suppress(OSError):  # where a mistake has ended it, nothing is in it
                folder.rmdir()
    print("all stages are done; the last one lies in")
    print(folder / stage_in(recipes[-1]).folder)
    return 0


def _run_stage(recipe: Recipe, folder: Path, words: Sequence[str]) -> int:
    stage = stage_in(recipe)
    place, number = folder / stage.folder, f"stage {stage.number} of {len(stage.names)}, {stage.name}"
    if is_done(recipe, place):
        print(f"{number}: done, in {place}", flush=True)
        return 0
    print(f"{number}: {place}", flush=True)
    code = start([*words, f"--{STAGE}={stage.name}"])
    if code > 128 and code not in STOPPED:
        name = signal.Signals(code - 128).name
        sys.stderr.write(f"stage {stage.name} was ended by {name}; {folder.name} goes on where its newest ")
        sys.stderr.write(f"checkpoint is: --run.name={folder.name} --run.resume=auto\n")
    return code


def start(words: Sequence[str]) -> int:
    """Run `v1lit run *words` in a process of its own, and hand signals on to it; returns its exit code."""
    return run_local(1, 1, lambda _: this_python(["run", *words]))


@contextmanager
def followed() -> Iterator[None]:
    """Stages that are started inside have the ones behind them checked."""
    os.environ[FOLLOWED] = "1"
    try:
        yield
    finally:
        os.environ.pop(FOLLOWED, None)


def resumed(run: RunConfig) -> list[tuple[str, str]]:
    """What a stage is told of resuming: the one in which the run has stopped, or any behind it."""
    return [("run.resume", "auto")] if run.resume else []


def folder_of_stages(run: RunConfig, recipe: Recipe) -> tuple[Path, bool]:
    """The folder of the run of all stages, and whether it was made now: one without a name always is.

    Raises UserError where its name is taken, and where there is nothing to resume.
    """
    if run.resume not in (None, "last", "auto"):
        raise UserError(
            f"run.resume is {run.resume!r}; with stages, a run resumes where it has stopped\n"
            f"give auto or last, or train one stage by itself, with --{STAGE}={stage_in(recipe).names[0]}"
        )
    if run.name is None:
        folder = free_path(Path(run.folder) / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        folder.mkdir(parents=True)
        return folder, True
    folder = Path(run.folder) / run.name
    begun = folder.is_dir() and any(folder.iterdir())
    if begun and run.resume is None:
        raise UserError(
            f"run.name is {run.name!r}, but {folder} holds a run already\n"
            "choose another name, or resume it: --run.resume=last"
        )
    if not begun and run.resume == "last":
        raise UserError(
            f"run.resume is 'last', but no stage has begun in {folder}\n"
            "begin with --run.resume=auto, or give the run.name and run.folder of the run to resume"
        )
    return folder, False


def _refuse_ranks(names: Sequence[str]) -> None:
    """Refuse processes that another launcher has started: none would know when the first one has exported."""
    if not {"WORLD_SIZE", "SLURM_PROCID"} & os.environ.keys():
        return
    from v1lit.cluster.launched import launched

    told = launched()
    if told is not None and told.size > 1:
        raise UserError(
            f"{told.by} has started {told.size} processes, and stages are runs after each other\n"
            f"run one after the other (--{STAGE}={names[0]} first), or all with v1lit launch"
        )


# ---------------------------------------------------------------------- one of them


def run_stage(recipe: Recipe, given: str, changes: Sequence[str], argv: Sequence[str]) -> int:
    """Train one stage in this process; returns the exit code.

    Args:
        recipe: of the stage.
        given: the recipe as it was typed.
        changes: that were typed.
        argv: all that followed `v1lit run`.
    """
    from v1lit.cli.recipe_cli import RecipeCLI
    from v1lit.cli.run_folder import is_first

    stage = stage_in(recipe)
    with named(stage):
        run = whole_run(recipe)
        place = None if run.name is None else Path(run.folder) / run.name / stage.folder
        if place is not None and is_first():
            if run.resume is None and place.is_dir() and any(place.iterdir()):
                raise UserError(
                    f"run.name is {run.name!r}, and the stage has begun there already: {place}\n"
                    "choose another name, or resume it: --run.resume=last"
                )
            if is_done(recipe, place):
                print(f"stage {stage.name} is done, in {place}")
                return 0
        own = placed(recipe, begins_from(recipe, run, given, changes))
        if FOLLOWED in os.environ and is_first():
            from v1lit.cli.stage_checks import check_stages

            check_stages(own, [stage_of(given, changes, name) for name in stage.names[stage.number :]])
        cli = RecipeCLI(own)
        if place is not None and is_first():
            forget_mark(place)
        code = cli.train(argv)
        if code == 0 and is_first():
            write_mark(cli.folder, recipe)
    return code


def placed(recipe: Recipe, begin_from: str | None) -> Recipe:
    """The recipe of a stage with the folder of its own run, and the model that it begins from."""
    run, stage = whole_run(recipe), stage_in(recipe)
    name = run.name or f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    config = {**recipe.config, "run": {**_group(recipe, "run"), "name": stage.folder}}
    config["run"]["folder"] = str(Path(run.folder) / name)
    if begin_from is not None:
        config["model"] = {**_group(recipe, "model"), "begin_from": begin_from}
    typed = {key: text for key, text in recipe.typed.items() if key not in ("run.name", "run.folder")}
    return replace(recipe, config=config, typed=typed)


def begins_from(recipe: Recipe, run: RunConfig, given: str, changes: Sequence[str]) -> str | None:
    """What a stage begins from: the model that the one before it has left, unless it names another itself.

    Raises UserError where that stage is not done, has left another model, or was trained by another recipe.
    """
    stage = stage_in(recipe)
    if stage.number == 1 or _group(recipe, "model").get("begin_from"):
        return None
    before = [stage_of(given, changes, name) for name in stage.names[: stage.number - 1]]
    former = stage_in(before[-1])
    if run.name is None:
        raise UserError(
            f"it begins from what stage {former.name} leaves: name the run that has it, --run.name=NAME\n"
            f"or another model to begin from: --stages.{stage.name}.{BEGIN_FROM}=FOLDER"
        )
    folder = Path(run.folder) / run.name
    marks = [(one, read_mark(folder / stage_in(one).folder)) for one in before]
    for one, mark in marks:
        if mark is not None:
            refuse_changed(one, mark)
    last = marks[-1][1]
    if last is None:
        raise UserError(
            f"it begins from what stage {former.name} leaves, which is not done in {folder}\n"
            f"train that first, with --{STAGE}={former.name}, or all stages, without {STAGE}"
        )
    return check_model(folder / former.folder, last)


def as_shown(recipe: Recipe) -> Recipe:
    """The recipe of a stage as it will be, as far as the name of its run is known; looks at no file."""
    run, stage = whole_run(recipe), stage_in(recipe)
    if run.name is None:
        return recipe
    if stage.number == 1 or _group(recipe, "model").get("begin_from"):
        return placed(recipe, None)
    former = Stage(stage.names[stage.number - 2], stage.names)
    return placed(recipe, str(Path(run.folder) / run.name / former.folder / MODEL))


# ---------------------------------------------------------------------- what both ask


def is_done(recipe: Recipe, place: Path) -> bool:
    """Whether a stage is done in its folder. Raises UserError for one whose recipe has changed since.

    The last one is then not done: it is trained on, as far as a resumed run can be.
    """
    mark = read_mark(place)
    if mark is None:
        return False
    if stage_in(recipe).is_last:
        return not changed_since(mark, recipe)
    refuse_changed(recipe, mark)
    return True


def refuse_changed(recipe: Recipe, mark: Mark) -> None:
    """Raise StageError where the recipe of a stage is not that of its mark."""
    changed = changed_since(mark, recipe)
    if not changed:
        return
    listed = "; ".join(
        f"{key} was {was} and is {now} ({recipe.origin(key)})" for key, (was, now) in changed.items()
    )
    raise StageError(
        f"stage {stage_in(recipe).name} is done, and its recipe has changed since: {listed}\n"
        "take the old value, or train anew under another run.name"
    )


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
        alike: groups, such as `data`; of stages in which these are the same it is done for the first only.
    """
    codes, seen = [], dict[str, str]()
    for name in (names := stages_of(recipe, changes)):
        own = stage_of(recipe, changes, name)
        content = json.dumps([_group(own, group) for group in alike] or name, sort_keys=True, default=str)
        if (other := seen.setdefault(content, name)) != name:
            print(f"stage {name}: {' and '.join(alike)} as in stage {other}")
            continue
        print(f"stage {name}")
        codes.append(command([*argv, f"--{STAGE}={name}"]))
    return max(codes) if names else None


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
    group, values = _group(recipe, "run"), {}
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


def _group(recipe: Recipe, name: str) -> dict[str, Any]:
    group = recipe.config.get(name)
    return group if isinstance(group, dict) else {}
