"""The task `pair`: whether two marked objects among many small ones agree in colour, or in shape."""

from __future__ import annotations

import random
from collections.abc import Mapping

from v1lit.data.synthetic.marked import FRAMED, RINGED, VALUES, any_kind, draw_marked, value_of
from v1lit.data.synthetic.questions import Turn, say, two_searches, yes_no
from v1lit.data.synthetic.scene import Scene


def make(rng: random.Random, size: tuple[int, int], difficulty: Mapping[str, int]) -> tuple[Scene, Turn]:
    """A scene of `objects` objects; in half of them the marked two agree."""
    attribute, answer = rng.choice(list(VALUES)), yes_no(rng)
    kinds = [any_kind(rng) for _ in range(difficulty["objects"])]
    of_first = kinds[0][list(VALUES).index(attribute)]
    wanted = of_first if answer == "yes" else rng.choice([v for v in VALUES[attribute] if v != of_first])
    color, shape = kinds[1]
    kinds[1] = (wanted, shape) if attribute == "colour" else (color, wanted)
    scene = draw_marked(rng, "pair", size, kinds)
    question = say(
        rng,
        [
            "Is the {v} of {a} also the {v} of {b}?",
            "Do {a} and {b} have the same {v}?",
            "Does {b} have the {v} of {a}?",
        ],
        v=attribute,
        a=RINGED,
        b=FRAMED,
    )
    first, second = scene.items[:2]
    before_first, find_first, before_second, find_second = two_searches(
        rng, RINGED, (first,), FRAMED, (second,)
    )
    values = [value_of(item, attribute) for item in (first, second)]
    told = [f"\n{{{k}}}: {value}." for k, value in enumerate(values)]
    last = f"\n{values[0]} and {values[1]}: {answer}."
    steps = (before_first, find_first, told[0], before_second, find_second, told[1], last)
    return scene, Turn(question, steps, answer)
