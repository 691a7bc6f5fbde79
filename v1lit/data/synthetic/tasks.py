"""Tasks on which a second look can matter: what each makes, and how difficult it can be made.

A task is a function `(rng, size, difficulty) -> (Scene, Turn)`, which raises NoQuestionError where a scene
does not come out well and another has to be drawn. The answer stands in the picture only: whatever the
question says, all answers to it are equally likely.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from v1lit.data.synthetic import pair, recall, total, trail
from v1lit.data.synthetic.marked import MOST, MOST_DICE
from v1lit.data.synthetic.questions import NoQuestionError, Search, Turn
from v1lit.data.synthetic.scene import COLORS, Scene
from v1lit.errors import OptionError

TRIES = 1000
IMAGE_SIZE = (224, 224)
"""Width and height in pixels, where none is given."""

Range = tuple[int, int]
"""Lowest and highest value, both included; each example has one of them, each as likely."""


@dataclass(frozen=True)
class Option:
    """One thing that makes a task harder."""

    default: Range
    allowed: Range


@dataclass(frozen=True)
class Task:
    """How the examples of one task are made."""

    make: Callable[[random.Random, tuple[int, int], Mapping[str, int]], tuple[Scene, Turn]]
    options: Mapping[str, Option]


TASKS: Mapping[str, Task] = {
    "trail": Task(trail.make, {"steps": Option((1, 3), (1, 8)), "objects": Option((6, 6), (3, 12))}),
    "pair": Task(pair.make, {"objects": Option((MOST_DICE, MOST_DICE), (2, MOST_DICE))}),
    "total": Task(total.make, {"steps": Option((1, 2), (1, 4)), "objects": Option((4, 4), (2, len(COLORS)))}),
    "recall": Task(
        recall.make,
        {
            "distance": Option((0, 8), (0, 64)),
            "objects": Option((16, 16), (2, MOST)),
            "look_again": Option((1, 1), (0, 1)),
        },
    ),
}
DIFFICULTY = ("steps", "objects", "distance", "look_again")
"""Settings that tasks have and looks have not."""


def make_task(
    rng: random.Random, task: str, size: tuple[int, int], difficulty: Mapping[str, Sequence[int]]
) -> tuple[Scene, Turn, str]:
    """A scene, its question, and the `source` of their example, as `read_source` reads it.

    Args:
        rng: decides everything.
        task: a key of `TASKS`.
        size: width and height in pixels.
        difficulty: what `ranges_of` returns for the task.
    """
    drawn = {name: rng.randint(*ends) for name, ends in difficulty.items()}
    for _ in range(TRIES):
        try:
            scene, turn = TASKS[task].make(rng, size, drawn)
        except NoQuestionError:
            continue
        return scene, turn, write_source(task, {**drawn, "looks": fewest_looks(turn)})
    told = ", ".join(f"{name} {value}" for name, value in drawn.items())
    raise ValueError(
        f"found no {task} scene of {size[0]}x{size[1]} pixels with {told} in {TRIES} tries; ask for fewer "
        "objects or steps, or for larger images"
    )


def fewest_looks(turn: Turn) -> int:
    """How many objects must be seen to answer: those that the trace looks at, each counted once."""
    return len({item.box for step in turn.steps if isinstance(step, Search) for item in step.items})


def write_source(task: str, facts: Mapping[str, int]) -> str:
    """The `source` of an example of a task, such as `synthetic/trail/steps=2/objects=6/looks=3`."""
    return "/".join(["synthetic", task, *(f"{name}={value}" for name, value in facts.items())])


def read_source(source: str) -> dict[str, str | int]:
    """What a task's `source` says: `{"task": "trail", "steps": 2, "objects": 6, "looks": 3}`.

    Of any other source, such as that of a look, the result is empty.
    """
    origin, _, rest = source.partition("/")
    task, *facts = rest.split("/")
    pairs = [fact.partition("=") for fact in facts]
    if origin != "synthetic" or task not in TASKS or not all(value.isdecimal() for _, _, value in pairs):
        return {}
    return {"task": task, **{name: int(value) for name, _, value in pairs}}


def ranges_of(task: str, given: Mapping[str, Any]) -> dict[str, Range]:
    """Lowest and highest value of each option of a task: what is given, else its default.

    Raises OptionError for a value that the task cannot have.
    """
    ranges = {}
    for name, option in TASKS[task].options.items():
        value = given.get(name)
        ends = option.default if value is None else _read_range(value)
        low, high = option.allowed
        if not low <= ends[0] <= ends[1] <= high:
            raise OptionError(name, value, f"the task {task} takes {low} to {high}{_or_two_ends(name)}")
        ranges[name] = ends
    most_steps = ranges["objects"][0] - (task == "trail")
    if "steps" in ranges and ranges["steps"][1] > most_steps:
        name = "steps" if given.get("steps") is not None else "objects"
        why = (
            f"the task {task} with {ranges['objects'][0]} objects has at most {most_steps} steps, and "
            f"{ranges['steps'][1]} are asked for; steps and objects have to fit"
        )
        raise OptionError(name, given.get(name), why)
    return ranges


def check_range(name: str, value: Any) -> None:
    """Raise OptionError for what cannot be a value of one of `DIFFICULTY`, whatever the task."""
    if name == "look_again":
        if not isinstance(value, bool):
            raise OptionError(name, value, "true or false is needed")
    elif isinstance(value, bool) or _read_range(value) == NO_RANGE:
        raise OptionError(name, value, "a whole number is needed, or the lowest and the highest in a list")


NO_RANGE = (-1, -2)
"""Ends of what is no range: outside of what any option allows."""


def _read_range(value: Any) -> Range:
    ends = list(value) if isinstance(value, Sequence) else [value]
    if len(ends) not in (1, 2) or not all(isinstance(end, int) for end in ends):
        return NO_RANGE
    return ends[0], ends[-1]


def _or_two_ends(name: str) -> str:
    return "" if name == "look_again" else ", or a list of its lowest and highest value"
