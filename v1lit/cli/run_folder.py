"""The folder of a run: one name for all processes of the run, never another run's folder."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from v1lit.cli.errors import UserError
from v1lit.cluster.rank_logs import LOGS
from v1lit.files import free_path, write_atomically
from v1lit.training import attempts
from v1lit.training.checkpoints import FOLDER, checkpoint_to_resume
from v1lit.training.config import RunConfig

VARIABLE = "V1LIT_RUN_FOLDER"
"""Tells the processes that Lightning starts for the other devices which folder the first one made."""


@contextmanager
def run_folder(run: RunConfig, recipe: str) -> Iterator[Path]:
    """The folder that this run writes to: `run.folder` / (`run.name`, or recipe name and time).

    The first process makes it, and takes it away again if the run ends before anything is in it. Raises
    UserError if the name is taken by another run, if `run.resume` finds no checkpoint in the folder, or if
    the folder cannot be made.
    """
    if not is_first():
        yield Path(os.environ.get(VARIABLE) or _wanted(run, recipe))
        return
    wanted = _wanted(run, recipe)
    missing: list[Path] = []
    try:
        missing += [place for place in wanted.parents if not place.exists()]
        folder, is_new = _make(run, wanted)
    except OSError as error:
        _remove_empty(missing)
        raise UserError(f"run.folder: {wanted} cannot be made: {error.strerror}") from error
    os.environ[VARIABLE] = str(folder)
    try:
        yield folder
    finally:
        os.environ.pop(VARIABLE, None)  # another run of this process, and what it starts, has another folder
        _remove_empty([*([folder] if is_new else []), *missing])


def _remove_empty(folders: list[Path]) -> None:
    """Take these folders away, the inner ones first, up to the first one that holds something."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def forget_attempt(folder: Path) -> None:
    """Take away what a run that never made a step has written to its new folder: its name is free again."""
    (folder / "recipe.yaml").unlink(missing_ok=True)
    for name in ("csv", "tensorboard", LOGS, attempts.FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
    with suppress(OSError):
        (folder / FOLDER).rmdir()


def save_recipe(folder: Path, text: str) -> None:
    """Write `recipe.yaml` (first process only); a run that is resumed keeps its earlier ones beside it."""
    if is_first():
        write_atomically(free_path(folder / "recipe.yaml"), text)


def _wanted(run: RunConfig, recipe: str) -> Path:
    return Path(run.folder) / (run.name or f"{recipe}-{_stamp()}")


def _make(run: RunConfig, wanted: Path) -> tuple[Path, bool]:
    """The folder, and whether it was made now; one that the run does not name always is."""
    if run.name is not None:
        if run.resume is None and wanted.is_dir() and any(wanted.iterdir()):
            raise UserError(
                f"run.name is {run.name!r}, but {wanted} holds a run already\n"
                "choose another name, or resume it: --run.resume=last"
            )
        checkpoint_to_resume(run.resume, wanted)
        is_new = not wanted.exists()
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted, is_new
    wanted.parent.mkdir(parents=True, exist_ok=True)
    folder = wanted
    for number in count(2):
        with suppress(FileExistsError):
            folder.mkdir()
            break
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder, True


def is_first() -> bool:
    """Whether this is the first process of the run."""
    rank: int = getattr(rank_zero_only, "rank", 0)
    return rank == 0


def is_helper() -> bool:
    """Whether the run's first process started this one, for another device."""
    return not is_first() and VARIABLE in os.environ


def _stamp() -> str:
    if "SLURM_PROCID" in os.environ:
        return os.environ.get("SLURM_JOB_ID", "job")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and VARIABLE not in os.environ:
        raise UserError(
            "several processes were started from outside (WORLD_SIZE is set), and they need one run folder\n"
            "name it: --run.name=NAME"
        )
    return time.strftime("%Y%m%d-%H%M%S")
