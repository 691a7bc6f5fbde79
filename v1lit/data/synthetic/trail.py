"""The task `trail`: from a ringed node along some arrows, and the colour of the node at the end.

An arrow leaves every node, the last of the trail too: only counting says where to stop. It begins with a dot
in the middle of the node and has the colour of the node that it leads to: so who sees a node knows what is
next, and the last node need not be looked at. With more nodes than colours, the colour alone does not say
which node comes next.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from itertools import pairwise

from v1lit.data.synthetic.arrows import Line, arrow_between, cross, draw_arrows, passes
from v1lit.data.synthetic.questions import NoQuestionError, Search, Turn, say
from v1lit.data.synthetic.scene import COLORS, Item, PixelBox, Scene, paper, ring
from v1lit.data.synthetic.shapes import mask

START = "the ringed node"
THICKNESS = 0.09
"""Scale of arrows as of `draw_arrows` for each pixel of a node's side."""
DOT = 0.64
"""Width of the dot in which an arrow begins, as a share of a node's side."""
SHORTEST = 0.9
"""Length of an arrow at least, as a multiple of a node's side."""
TIPS_APART = 0.6
"""Distance between the tips of two arrows at least, as a multiple of a node's side."""


def make(rng: random.Random, size: tuple[int, int], difficulty: Mapping[str, int]) -> tuple[Scene, Turn]:
    """A graph of `objects` nodes and the way of `steps` arrows through it."""
    count, steps = difficulty["objects"], difficulty["steps"]
    if steps >= count:
        raise NoQuestionError
    boxes = _place(rng, count, size)
    colors = rng.sample([color for _ in range(-(-count // len(COLORS))) for color in COLORS], count)
    items = tuple(Item(f"{color} node", box, color, "node") for color, box in zip(colors, boxes, strict=True))
    trail, arrows = _connect(rng, boxes, colors, steps)
    image = paper(rng, size, tint=6)
    side = boxes[0][2] - boxes[0][0]
    for item in items:
        image.paste(COLORS[item.color], item.box[:2], mask("circle", side))
    for (start, end), (_, tip) in arrows.items():
        middle = items[start].centre
        drawn = draw_arrows([(middle, tip)], size, scale=THICKNESS * side, dot=DOT * side)
        image.paste(COLORS[colors[end]], (0, 0), drawn)
    ring(image, boxes[trail[0]])
    scene = Scene("trail", image, items, arrows=tuple(arrows))
    return scene, _ask(rng, [items[k] for k in trail])


def _place(rng: random.Random, count: int, size: tuple[int, int]) -> list[PixelBox]:
    """Squares of one size, in different cells of a grid that has a few more cells than nodes."""
    grid = math.isqrt(count) + 1
    cell_w, cell_h = size[0] / grid, size[1] / grid
    side = round(0.46 * min(cell_w, cell_h))
    boxes = []
    for cell in rng.sample(range(grid * grid), count):
        x = round((cell % grid + rng.uniform(0.12, 0.88 - side / cell_w)) * cell_w)
        y = round((cell // grid + rng.uniform(0.12, 0.88 - side / cell_h)) * cell_h)
        boxes.append((x, y, x + side, y + side))
    return boxes


def _connect(
    rng: random.Random, boxes: list[PixelBox], colors: list[str], steps: int
) -> tuple[list[int], dict[tuple[int, int], Line]]:
    """The nodes of the trail, and one arrow from each node to another; no two arrows meet.

    Raises NoQuestionError where nodes lie so that this does not come about.
    """
    arrows: dict[tuple[int, int], Line] = {}
    trail = rng.sample(range(len(boxes)), 1)
    for _ in range(steps):
        trail.append(_leave(rng, boxes, colors, trail[-1], arrows, avoid=trail))
    for node in rng.sample(range(len(boxes)), len(boxes)):
        if node not in trail[:-1]:
            _leave(rng, boxes, colors, node, arrows)
    return trail, arrows


def _leave(
    rng: random.Random,
    boxes: list[PixelBox],
    colors: list[str],
    start: int,
    arrows: dict[tuple[int, int], Line],
    avoid: list[int] | None = None,
) -> int:
    """Add an arrow from a node; returns where it leads: to another colour, and to no node to avoid."""
    for end in rng.sample(range(len(boxes)), len(boxes)):
        if colors[end] == colors[start] or (end, start) in arrows or end in (avoid or ()):
            continue
        line, side = arrow_between(boxes[start], boxes[end]), boxes[0][2] - boxes[0][0]
        if line is None or math.dist(*line) < SHORTEST * side:
            continue
        if any(cross(line, a) or math.dist(line[1], a[1]) < TIPS_APART * side for a in arrows.values()):
            continue
        if not any(passes(line, box) for k, box in enumerate(boxes) if k not in (start, end)):
            arrows[start, end] = line
            return end
    raise NoQuestionError


def _ask(rng: random.Random, trail: list[Item]) -> Turn:
    steps, answer = len(trail) - 1, trail[-1].color
    question = say(
        rng,
        [
            "Begin at {x} and go along {n}. Which colour has the node at the end?",
            "From {x}, go along {n}. What is the colour of the node there?",
            "What colour is the node that is {n} from {x}?",
        ],
        x=START,
        n="1 arrow" if steps == 1 else f"{steps} arrows",
    )
    parts: list[str | Search] = [
        f"I look for {START}. ",
        Search(START, (trail[0],)),
    ]
    for k, (item, after) in enumerate(pairwise(trail)):
        if k:
            parts += ["I look there. ", Search("the next node", (item,))]
        parts.append(f"\n{{{k}}}, arrow {k + 1} of {steps}: {after.color}. ")
    return Turn(question, (*parts, f"That is the end: {answer}."), answer)
