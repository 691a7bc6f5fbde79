"""The task `pair`: which of two marked dice among many small ones shows more."""

from __future__ import annotations

import random
from collections.abc import Mapping

from v1lit.data.synthetic.marked import FRAMED, RINGED, draw_dice
from v1lit.data.synthetic.questions import Search, Turn, say
from v1lit.data.synthetic.scene import Scene

HIGHEST = 6
"""Dice show 1 to this."""


def make(rng: random.Random, size: tuple[int, int], difficulty: Mapping[str, int]) -> tuple[Scene, Turn]:
    """A scene of `objects` dice; the marked two differ, and in half of all the ringed one shows more."""
    low, high = sorted(rng.sample(range(1, HIGHEST + 1), 2))
    answer = rng.choice(("ringed", "framed"))
    values = [high, low] if answer == "ringed" else [low, high]
    others = [rng.randint(1, HIGHEST) for _ in range(difficulty["objects"] - 2)]
    scene = draw_dice(rng, "pair", size, [*values, *others])
    question = say(
        rng,
        [
            "Which die shows more, the ringed or the framed one?",
            "Of the ringed and the framed die, which shows more?",
            "Which of the two marked dice is higher?",
        ],
    )
    steps = (
        f"I look for {RINGED}. ",
        Search(RINGED, scene.items[:1]),
        f"\n{{0}}: {values[0]}. Now {FRAMED}. ",
        Search(FRAMED, scene.items[1:2]),
        f"\n{{1}}: {values[1]}.\n{values[0]} and {values[1]}: {answer}.",
    )
    return scene, Turn(question, steps, answer)
