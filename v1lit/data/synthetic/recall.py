"""The task `recall`: only after some sentences about other things is it clear what is asked of an object.

The trace looks at the object first. Then it goes through a list, one sentence for each thing in it, and the
last thing says what is asked for: a circle the shape, anything else the colour. The list names colours and
shapes of things that are not in the picture.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from v1lit.data.synthetic.marked import RINGED, VALUES, any_kind, draw_marked, value_of
from v1lit.data.synthetic.questions import Search, Turn, say
from v1lit.data.synthetic.scene import Scene


def make(rng: random.Random, size: tuple[int, int], difficulty: Mapping[str, int]) -> tuple[Scene, Turn]:
    """A scene of `objects` objects and a question with `distance` sentences between look and attribute.

    With `look_again` the trace looks a second time when it knows what is asked for.
    """
    scene = draw_marked(rng, "recall", size, [any_kind(rng) for _ in range(difficulty["objects"])])
    listed = [_listed(rng) for _ in range(1 + difficulty["distance"])]
    told = [f" {k + 1} {color} {shape}: {_asked(shape)}." for k, (color, shape) in enumerate(listed)]
    asked = _asked(listed[-1][1])
    target = scene.items[0]
    answer = value_of(target, asked)
    question = say(rng, ["Find {x} first.", "Look for {x} first."], x=RINGED)
    things = ", ".join(f"{k + 1} {color} {shape}" for k, (color, shape) in enumerate(listed))
    question += f" The last thing here asks for its shape if it is a circle, else for its colour: {things}."
    again: list[str | Search] = [" Again, ", Search(RINGED, (target,))] if difficulty["look_again"] else []
    steps = (
        f"I look for {RINGED}. ",
        Search(RINGED, (target,)),
        f"\nThe list:{''.join(told)}",
        f"\nSo the {asked} of {{0}}.",
        *again,
        f"\nIt is {answer}.",
    )
    return scene, Turn(question, steps, answer)


def _asked(shape: str) -> str:
    return "shape" if shape == "circle" else "colour"


def _listed(rng: random.Random) -> tuple[str, str]:
    """A thing of the list; every second is a circle, so that either question is as likely as the other."""
    others = [shape for shape in VALUES["shape"] if shape != "circle"]
    return rng.choice(VALUES["colour"]), "circle" if rng.random() < 0.5 else rng.choice(others)
