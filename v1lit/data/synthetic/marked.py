"""Small objects of one size, of which some are marked with a ring or a frame."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from v1lit.data.synthetic.scene import COLORS, Item, Scene, frame, paper, ring
from v1lit.data.synthetic.shapes import mask

VALUES = {"colour": ("red", "green", "blue", "yellow"), "shape": ("circle", "square", "triangle", "diamond")}
"""Attribute -> its values, equally many."""
MOST = 36
"""Objects that can still be told apart in the smallest image."""
ROOM = 2.3
"""Width of the cell in which an object and its mark lie, as a multiple of the object's."""
RINGED, FRAMED = "the ringed object", "the framed object"


def value_of(item: Item, attribute: str) -> str:
    """What an object has for a key of `VALUES`."""
    return item.color if attribute == "colour" else item.shape


def draw_marked(
    rng: random.Random, look: str, size: tuple[int, int], kinds: Sequence[tuple[str, str]]
) -> Scene:
    """A scene with an object for each of some (colour, shape), the first ringed and the second framed.

    The more objects, the smaller: each has a cell of a grid. All have a box of the same size, so that the
    number of tokens that see one says nothing about it.

    Args:
        rng: decides where each object lies.
        look: name of the scene.
        size: width and height in pixels.
        kinds: what the objects are; the first two are called `the ringed object` and `the framed object`.
    """
    grid = math.isqrt(len(kinds)) + 1
    cell_w, cell_h = size[0] / grid, size[1] / grid
    side = int(min(cell_w, cell_h) / ROOM)
    items = []
    for cell, (color, shape) in zip(rng.sample(range(grid * grid), len(kinds)), kinds, strict=True):
        x = round((cell % grid + 0.5 + rng.uniform(-0.1, 0.1)) * cell_w - side / 2)
        y = round((cell // grid + 0.5 + rng.uniform(-0.1, 0.1)) * cell_h - side / 2)
        items.append(Item(f"{color} {shape}", (x, y, x + side, y + side), color, shape))
    image = paper(rng, size)
    for item in items:
        image.paste(COLORS[item.color], item.box[:2], mask(item.shape, side))
    ring(image, items[0].box)
    frame(image, items[1].box)
    names = ("ringed object", "framed object")
    marked = [replace(item, name=name) for item, name in zip(items, names, strict=False)]
    return Scene(look, image, (*marked, *items[2:]))


def any_kind(rng: random.Random) -> tuple[str, str]:
    """A colour and a shape, each as likely as any other."""
    return rng.choice(VALUES["colour"]), rng.choice(VALUES["shape"])
