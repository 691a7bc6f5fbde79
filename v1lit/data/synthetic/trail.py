"""The task `trail`: from a ringed node along some arrows, and the colour of the node at the end.

Every node has an arrow in its own colour that leaves it, the last of the trail too: only counting says where
to stop.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from itertools import pairwise

from PIL import ImageDraw

from v1lit.data.synthetic.arrows import Line, arrow_between, cross, draw_arrows, passes
from v1lit.data.synthetic.questions import NoQuestionError, Search, Turn, say
from v1lit.data.synthetic.scene import COLORS, INK, Item, PixelBox, Scene, paper, ring

START = "the ringed node"
ARROW_SCALE = 1.4
"""Thickness of arrows, as a multiple of that in diagrams."""


def make(rng: random.Random, size: tuple[int, int], difficulty: Mapping[str, int]) -> tuple[Scene, Turn]:
    """A graph of `objects` nodes and the way of `steps` arrows through it."""
    count, steps = difficulty["objects"], difficulty["steps"]
    if steps >= count:
        raise NoQuestionError
    boxes = _place(rng, count, size)
    colors = rng.sample([color for _ in range(-(-count // len(COLORS))) for color in COLORS], count)
    items = tuple(Item(f"{c} node", box, c, "node") for c, box in zip(colors, boxes, strict=True))
    trail, arrows = _connect(rng, boxes, steps)
    image = paper(rng, size, tint=6)
    for (start, _), line in arrows.items():
        drawn = draw_arrows([line], size, scale=ARROW_SCALE * max(1, min(size) / 168))
        image.paste(COLORS[colors[start]], (0, 0), drawn)
    pen = ImageDraw.Draw(image)
    for item in items:
        x1, y1, x2, y2 = item.box
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=COLORS[item.color], outline=INK)
    ring(image, boxes[trail[0]])
    scene = Scene("trail", image, items, arrows=tuple(arrows))
    return scene, _ask(rng, [items[k] for k in trail])


def _place(rng: random.Random, count: int, size: tuple[int, int]) -> list[PixelBox]:
    """Squares of one size, in different cells of a grid that has a few more cells than nodes."""
    grid = math.isqrt(count) + 1
    cell_w, cell_h = size[0] / grid, size[1] / grid
    side = round(0.34 * min(cell_w, cell_h))
    boxes = []
    for cell in rng.sample(range(grid * grid), count):
        x = round((cell % grid + rng.uniform(0.16, 0.84 - side / cell_w)) * cell_w)
        y = round((cell // grid + rng.uniform(0.16, 0.84 - side / cell_h)) * cell_h)
        boxes.append((x, y, x + side, y + side))
    return boxes


def _connect(
    rng: random.Random, boxes: list[PixelBox], steps: int
) -> tuple[list[int], dict[tuple[int, int], Line]]:
    """The nodes of the trail, and one arrow from each node to another; no two arrows meet.

    Raises NoQuestionError where nodes lie so that this does not come about.
    """
    arrows: dict[tuple[int, int], Line] = {}
    trail = rng.sample(range(len(boxes)), 1)
    for _ in range(steps):
        trail.append(_leave(rng, boxes, trail[-1], arrows, avoid=trail))
    for node in rng.sample(range(len(boxes)), len(boxes)):
        if node not in trail[:-1]:
            _leave(rng, boxes, node, arrows)
    return trail, arrows


def _leave(
    rng: random.Random,
    boxes: list[PixelBox],
    start: int,
    arrows: dict[tuple[int, int], Line],
    avoid: list[int] | None = None,
) -> int:
    """Add an arrow from a node; returns where it leads, which is none of the nodes to avoid."""
    for end in rng.sample(range(len(boxes)), len(boxes)):
        if end == start or (end, start) in arrows or end in (avoid or ()):
            continue
        line = arrow_between(boxes[start], boxes[end])
        if line is None or any(cross(line, other) for other in arrows.values()):
            continue
        if not any(passes(line, box) for k, box in enumerate(boxes) if k not in (start, end)):
            arrows[start, end] = line
            return end
    raise NoQuestionError


def _ask(rng: random.Random, trail: list[Item]) -> Turn:
    steps, answer = len(trail) - 1, trail[-1].color
    arrows = "1 arrow" if steps == 1 else f"{steps} arrows"
    question = say(
        rng,
        [
            "Begin at {x} and go along {n}. What colour is the node at the end?",
            "From {x}, go along {n}. Which colour does the node there have?",
            "What colour is the node that is {n} from {x}?",
        ],
        x=START,
        n=arrows,
    )
    parts: list[str | Search] = [
        say(rng, ["I look for {x}. ", "Let me find {x}. "], x=START),
        Search(START, (trail[0],)),
    ]
    for k, (item, after) in enumerate(pairwise(trail)):
        parts += [f"\n{{{k}}} is {item.color}. Arrow {k + 1} of {steps}: ", Search("the next node", (after,))]
    return Turn(question, (*parts, f"\n{{{steps}}} is {answer}, the end."), answer)
