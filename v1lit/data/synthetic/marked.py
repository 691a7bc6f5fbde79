"""Small objects of one size, of which some are marked with a ring or a frame."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image, ImageDraw

from v1lit.data.synthetic.scene import COLORS, INK, Item, PixelBox, Scene, frame, paper, ring
from v1lit.data.synthetic.shapes import mask

VALUES = {"colour": ("red", "green", "blue", "yellow"), "shape": ("circle", "square", "triangle", "diamond")}
"""Attribute -> its values, equally many."""
MOST = 36
"""Objects that can still be told apart in the smallest image."""
MOST_DICE = 15
"""Dice whose dots can still be counted in the smallest image."""
ROOM = 2.3
"""Width of the cell in which an object and its mark lie, as a multiple of the object's."""
DOTS = {
    1: ((1, 1),),
    2: ((0, 0), (2, 2)),
    3: ((0, 0), (1, 1), (2, 2)),
    4: ((0, 0), (2, 0), (0, 2), (2, 2)),
    5: ((0, 0), (2, 0), (1, 1), (0, 2), (2, 2)),
    6: ((0, 0), (2, 0), (0, 1), (2, 1), (0, 2), (2, 2)),
}
"""Value of a die -> column and row of its dots, each 0 to 2."""
DIE_OVERSAMPLE = 4
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
    items = [
        Item(f"{color} {shape}", box, color, shape)
        for (color, shape), box in zip(kinds, _place(rng, size, len(kinds)), strict=True)
    ]
    image = paper(rng, size)
    for item in items:
        image.paste(COLORS[item.color], item.box[:2], mask(item.shape, item.box[2] - item.box[0]))
    return _mark(look, image, items)


def draw_dice(rng: random.Random, look: str, size: tuple[int, int], values: Sequence[int]) -> Scene:
    """A scene with a die for each of some values (1 to 6), marked and arranged as in `draw_marked`."""
    items = [
        Item(f"die of {value}", box, "white", "die", value=value)
        for value, box in zip(values, _place(rng, size, len(values)), strict=True)
    ]
    image = paper(rng, size)
    for item in items:
        image.paste(_die(int(item.value), item.box[2] - item.box[0]), item.box[:2])
    return _mark(look, image, items)


def _place(rng: random.Random, size: tuple[int, int], count: int) -> list[PixelBox]:
    grid = math.isqrt(count) + 1
    cell_w, cell_h = size[0] / grid, size[1] / grid
    side = int(min(cell_w, cell_h) / ROOM)
    boxes = []
    for cell in rng.sample(range(grid * grid), count):
        x = round((cell % grid + 0.5 + rng.uniform(-0.1, 0.1)) * cell_w - side / 2)
        y = round((cell // grid + 0.5 + rng.uniform(-0.1, 0.1)) * cell_h - side / 2)
        boxes.append((x, y, x + side, y + side))
    return boxes


def _die(value: int, side: int) -> Image.Image:
    """The face of a die, its dots at their usual places: [side, side] pixels."""
    face = Image.new("RGB", (side * DIE_OVERSAMPLE,) * 2, INK)
    pen = ImageDraw.Draw(face)
    unit = side * DIE_OVERSAMPLE / 4
    radius = 0.37 * unit
    for column, row in DOTS[value]:
        x, y = unit * (column + 1), unit * (row + 1)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 255, 255))
    return face.reduce(DIE_OVERSAMPLE)


def _mark(look: str, image: Image.Image, items: Sequence[Item]) -> Scene:
    ring(image, items[0].box)
    frame(image, items[1].box)
    names = ("ringed object", "framed object")
    marked = [replace(item, name=name) for item, name in zip(items, names, strict=False)]
    return Scene(look, image, (*marked, *items[2:]))


def any_kind(rng: random.Random) -> tuple[str, str]:
    """A colour and a shape, each as likely as any other."""
    return rng.choice(VALUES["colour"]), rng.choice(VALUES["shape"])
