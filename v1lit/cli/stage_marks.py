"""What is left of a stage that is done: a mark in its folder, which says of what recipe and which model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from v1lit.cli.errors import UserError
from v1lit.cli.recipe import Recipe, flattened
from v1lit.files import write_atomically

FILE = "done.json"
"""Written last into the folder of a stage."""
MODEL = "model"
"""Of a run's folder, the export."""


@dataclass(frozen=True)
class Mark:
    """A stage that is done."""

    recipe: dict[str, str]
    """Its keys and values as JSON, but for those of `run`."""
    model: str | None
    """Digits of the exported weights; None without an export."""


def read_mark(folder: Path) -> Mark | None:
    """The mark of a stage's folder; None where the stage is not done."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Mark(dict(content["recipe"]), content["model"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / FILE} cannot be read: {error}\nremove it to train the stage on"
        ) from error


def stage_folders(folder: Path) -> list[Path]:
    """The folders of stages in that of a run; none where it has no stages."""
    return sorted(path.parent for path in folder.glob("[0-9]*-*/recipe.yaml"))


def write_mark(folder: Path, recipe: Recipe) -> None:
    """Note that a stage is done, of which the export is there."""
    from v1lit.training.resuming import weights_content

    model = weights_content(str(folder / MODEL)) if (folder / MODEL).is_dir() else None
    content = {"recipe": values_of(recipe), "model": model}
    write_atomically(folder / FILE, json.dumps(content, indent=1, sort_keys=True) + "\n")


def forget_mark(folder: Path) -> None:
    """Take the mark away: the stage is trained on."""
    (folder / FILE).unlink(missing_ok=True)


def values_of(recipe: Recipe) -> dict[str, str]:
    """The keys of a composed recipe, as far as files and the command line say them, with values as JSON."""
    return flattened({group: content for group, content in recipe.config.items() if group != "run"})


def changed_since(mark: Mark, recipe: Recipe) -> dict[str, tuple[str, str]]:
    """Keys with another value in a recipe than in that of the mark, with both values.

    Left out is what is of each job, such as devices: nothing of it is in what was trained.
    """
    now, absent = values_of(recipe), "null"
    keys = sorted(
        key for key in mark.recipe.keys() | now.keys() if mark.recipe.get(key, absent) != now.get(key, absent)
    )
    if not keys:
        return {}
    from v1lit.training.resuming import CHANGES, Change

    of_jobs = [key for key, change in CHANGES.items() if change is Change.JOB]
    return {
        key: (mark.recipe.get(key, absent), now.get(key, absent))
        for key in keys
        if not any(f"{key}.".startswith(f"{job}.") for job in of_jobs)
    }


def check_model(folder: Path, mark: Mark) -> str:
    """The model that a stage has left in its folder, for the next one to begin from.

    Raises UserError unless it is there, as it was when the stage was done.
    """
    from v1lit.training.resuming import weights_content

    model = folder / MODEL
    found = weights_content(str(model)) if model.is_dir() else None
    if mark.model is None or found != mark.model:
        what = "is not there" if found is None else "holds other weights than the stage has left"
        raise UserError(
            f"it begins from {model}, which {what}\nput it back, or make it again: v1lit report {folder}"
        )
    return str(model)
