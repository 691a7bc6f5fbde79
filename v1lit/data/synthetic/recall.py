"""The task `recall`: only after some sentences about other things is it clear what is asked of an object.

The trace looks at the object first. Then it goes through a list, one sentence for each thing in it, and each
circle there changes the question from colour to shape or back; the last sentence says what is asked for. The
list names colours and shapes of things that are not in the picture.
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
    listed = [_listed(rng) for _ in range(difficulty["distance"])]
    first = asked = rng.choice(list(VALUES))
    sentences = []
    for color, shape in listed:
        if shape == "circle":
            asked = "shape" if asked == "colour" else "colour"
        sentences.append(f" {color.capitalize()} {shape}: {asked}.")
    target = scene.items[0]
    answer = value_of(target, asked)
    question = say(
        rng,
        ["Find {x} first. Then begin with {v}.", "Look for {x}. The question begins as {v}."],
        x=RINGED,
        v=first,
    )
    if listed:
        things = ", ".join(f"{color} {shape}" for color, shape in listed)
        question += f" Each circle here is a change from colour to shape or back: {things}."
    question += say(rng, [" Answer what is left.", " What is the answer at the end?"])
    again: list[str | Search] = [" Again, ", Search(RINGED, (target,))] if difficulty["look_again"] else []
    steps = (
        say(rng, ["I look for {x}. ", "Let me find {x}. "], x=RINGED),
        Search(RINGED, (target,)),
        f"\nI begin with {first}.{''.join(sentences)}",
        f"\nSo the {asked} of {{0}}.",
        *again,
        f"\nIt is {answer}.",
    )
    return scene, Turn(question, steps, answer)


def _listed(rng: random.Random) -> tuple[str, str]:
    """A thing of the list; every second is a circle, so that either question is as likely as the other."""
    others = [shape for shape in VALUES["shape"] if shape != "circle"]
    return rng.choice(VALUES["colour"]), "circle" if rng.random() < 0.5 else rng.choice(others)
