"""`lightning run` of a recipe with stages: a run for each in a folder of its own, one after another.

Each stage is trained by a process of its own, `v1lit run RECIPE --run.stage=NAME`, and so by processes that
Lightning or a launcher starts for it: nothing of one stage is left in the next but its exported model.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from v1lit.cli.errors import UserError
from v1lit.cli.importing import importing
from v1lit.cli.recipe import Recipe, compose_all, read_changes
from v1lit.cli.stage_entries import BEGIN_FROM, FOLLOWED, STAGE
from v1lit.cli.stage_marks import (
    Mark,
    changed_since,
    check_model,
    forget_mark,
    read_mark,
    write_mark,
)
from v1lit.cli.stage_recipes import StageError, group_in, named, placed, stage_in, stage_of, whole_run
from v1lit.files import free_path
from v1lit.launch.local import run_local, this_python
from v1lit.training.config import RunConfig

TOLD = (signal.SIGINT, signal.SIGTERM)
KILLED = {128 + number: number.name for number in signal.Signals if number not in TOLD}
"""Exit codes of a process that a signal has ended, unless it was told to stop."""


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
    if (name := KILLED.get(code)) is not None:
        sys.stderr.write(
            f"stage {stage.name} was ended by {name}; resume from its newest checkpoint with "
            f"--run.name={folder.name} --run.resume=auto\n"
        )
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
    with importing():
        from v1lit.cli.recipe_cli import RecipeCLI
        from v1lit.cli.run_folder import is_first

    stage = stage_in(recipe)
    with named(stage):
        run = whole_run(recipe)
        place = None if run.name is None else Path(run.folder) / run.name / stage.folder
        if place is not None:
            if is_first() and run.resume is None and place.is_dir() and any(place.iterdir()):
                raise UserError(
                    f"run.name is {run.name!r}, and the stage has begun there already: {place}\n"
                    "choose another name, or resume it: --run.resume=last"
                )
            if is_done(recipe, place):
                if is_first():
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


def begins_from(recipe: Recipe, run: RunConfig, given: str, changes: Sequence[str]) -> str | None:
    """What a stage begins from: the model that the one before it has left, unless it names another itself.

    Raises UserError where that stage is not done, has left another model, or was trained by another recipe.
    """
    stage = stage_in(recipe)
    if stage.number == 1 or group_in(recipe, "model").get("begin_from"):
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
