"""The folder of a run: one name for all processes of the run, never another run's folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from v1lit.cli.errors import UserError
from v1lit.training.config import RunConfig

VARIABLE = "V1LIT_RUN_FOLDER"
"""Tells the processes that Lightning starts for the other devices which folder the first one chose."""


def name_run_folder(run: RunConfig, recipe: str) -> Path:
    """The folder that this run will write to: `run.folder` / (`run.name`, or recipe name and time)."""
    if int(os.environ.get("LOCAL_RANK", "0")) > 0 and VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    folder = Path(run.folder) / (run.name or f"{recipe}-{_stamp()}")
    if run.name is not None and run.resume is None and _is_first() and _holds_files(folder):
        raise UserError(
            f"run.name is {run.name!r}, but {folder} holds a run already\n"
            "choose another name, or go on from a checkpoint with --run.resume=FILE"
        )
    return folder


def make_run_folder(folder: Path) -> None:
    """Create the folder (first process only) and tell processes started from here about it."""
    os.environ[VARIABLE] = str(folder)
    if _is_first():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run.folder: {folder} cannot be made: {error.strerror}") from error


def save_recipe(folder: Path, text: str) -> None:
    """Write `recipe.yaml` (first process only); a run that is resumed keeps its earlier ones beside it."""
    if not _is_first():
        return
    path = folder / "recipe.yaml"
    number = 2
    while path.exists():
        path = folder / f"recipe-{number}.yaml"
        number += 1
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _is_first() -> bool:
    rank: int = getattr(rank_zero_only, "rank", 0)
    return rank == 0


def _stamp() -> str:
    if "SLURM_PROCID" in os.environ:
        return os.environ.get("SLURM_JOB_ID", "job")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and VARIABLE not in os.environ:
        raise UserError(
            "several processes were started from outside (WORLD_SIZE is set), and they need one run folder\n"
            "name it: --run.name=NAME"
        )
    return time.strftime("%Y%m%d-%H%M%S")


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
