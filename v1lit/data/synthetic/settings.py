"""What a data set is drawn from: the settings of `synthesize`, checked and completed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from v1lit.data.synthetic import looks, tasks
from v1lit.data.synthetic.looks import LOOKS
from v1lit.data.synthetic.questions import QUESTION_KINDS
from v1lit.data.synthetic.tasks import DIFFICULTY, TASKS, check_range, ranges_of
from v1lit.errors import OptionError, name_allowed

MIN_SIDE = 112
MAX_SIDE = 2048
NAMES = {"look": LOOKS, "kinds": QUESTION_KINDS, "task": TASKS}
OF_LOOKS = {"look": ("shapes",), "kinds": QUESTION_KINDS, "questions_per_scene": 1}
"""Settings that looks have and tasks have not, with their defaults."""


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the bytes of a data set: `settings`, with a default wherever they hold None.

    Raises OptionError for a value that a setting cannot have, and for settings that do not go together.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        check_setting(name, value)
    if "task" in given:
        return _of_tasks(given)
    for name in DIFFICULTY:
        if name in given:
            why = f"only tasks have it; choose one with task: {', '.join(TASKS)}"
            raise OptionError(name, given[name], why)
    given = {"image_size": looks.IMAGE_SIZE, **OF_LOOKS, **given}
    order = ("examples", "seed", "look", "image_size", "kinds", "questions_per_scene", "shard_examples")
    return {name: _listed(given[name]) for name in order if name in given}


def _of_tasks(given: Mapping[str, Any]) -> dict[str, Any]:
    chosen = _listed(given["task"])
    for name in OF_LOOKS:
        if name in given:
            why = f"task is {', '.join(chosen)}, and tasks have their own questions: one of the two is null"
            raise OptionError(name, given[name], why)
    for name in DIFFICULTY:
        takers = [task for task in TASKS if name in TASKS[task].options]
        if name in given and not set(takers) & set(chosen):
            why = f"task is {', '.join(chosen)}; only {' and '.join(takers)} has it"
            raise OptionError(name, given[name], why.replace("has it", "have it" if takers[1:] else "has it"))
    difficulty = {task: {k: list(v) for k, v in ranges_of(task, given).items()} for task in chosen}
    given = {"image_size": tasks.IMAGE_SIZE, **given, "difficulty": difficulty}
    order = ("examples", "seed", "task", "difficulty", "image_size", "shard_examples")
    return {name: _listed(given[name]) for name in order if name in given}


def _listed(value: Any) -> Any:
    """A list where several values may stand, as JSON has it."""
    return [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else value


def check_setting(name: str, value: Any) -> None:
    """Raise OptionError for a value that the setting `name` of `synthesize` cannot have."""
    if name == "image_size":
        pair = isinstance(value, Sequence) and len(value) == 2
        if not pair or not all(_is_int(side) and MIN_SIDE <= side <= MAX_SIDE for side in value):
            why = f"allowed: width and height, each {MIN_SIDE} to {MAX_SIDE} pixels"
            raise OptionError(name, value, why)
    elif name in NAMES:
        allowed = NAMES[name]
        wrong = [item for item in ([value] if isinstance(value, str) else value) if item not in allowed]
        if wrong or not value:
            unknown = f"no {wrong[0]!r}; " if wrong else ""
            raise OptionError(name, value, unknown + name_allowed("".join(wrong[:1]), allowed))
    elif name in DIFFICULTY:
        check_range(name, value)
    elif not _is_int(value):
        raise OptionError(name, value, "a whole number is needed")
    elif name != "seed" and value < 1:
        raise OptionError(name, value, "a whole number of at least 1 is needed")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
