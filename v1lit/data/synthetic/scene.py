"""What a drawn scene is: a picture and the items in it, with the exact pixels each item covers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

PixelBox = tuple[int, int, int, int]
"""`(x1, y1, x2, y2)` in pixels of the image: the pixel columns x1 .. x2-1 and rows y1 .. y2-1."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (34, 146, 52),
    "blue": (36, 88, 208),
    "yellow": (242, 196, 15),
    "purple": (138, 43, 186),
    "orange": (245, 124, 20),
}
INK = (40, 40, 48)
MARK_OVERSAMPLE = 4
CLEAR_SHARE = 0.06
"""How far an item's centre must be from a line before a question asks for its side; a share of the image."""


@dataclass(frozen=True)
class Item:
    """One thing that a question can ask about."""

    name: str
    """How a question calls it, without an article: `red circle`, `bar Mon`, `node C`. Not always unique."""
    box: PixelBox
    """The smallest box around its drawn pixels."""
    color: str
    """A key of `COLORS`."""
    shape: str
    """`circle`, `square`, `triangle`, `diamond`, `bar` or `node`."""
    label: str = ""
    """The text that stands at it, if any."""
    value: float = 0.0
    """What a bar measures, in units of its axis."""

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box, in pixels."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclass(frozen=True)
class Scene:
    """A picture with known content; nothing in it overlaps."""

    look: str
    image: Image.Image
    items: tuple[Item, ...]
    arrows: tuple[tuple[int, int], ...] = ()
    """Diagrams and trails: (from, to), indices into `items`."""
    gridlines: tuple[float, ...] = ()
    """Bar charts: the labelled values of the axis."""


def left_to_right(items: Sequence[Item]) -> tuple[Item, ...]:
    """The order in which a trace lists several objects: by the x of the centre, then by its y."""
    return tuple(sorted(items, key=lambda item: item.centre))


def order_is_clear(items: Sequence[Item], width: int) -> bool:
    """Whether the centres are far enough apart in x that "left to right" has one answer."""
    xs = sorted(item.centre[0] for item in items)
    return all(b - a >= 0.04 * width for a, b in pairwise(xs))


def corner(item: Item, size: tuple[int, int]) -> str | None:
    """`top left`, `top right`, `bottom left` or `bottom right` by the centre; None where it is not clear."""
    (x, y), (width, height) = item.centre, size
    if abs(x - width / 2) < CLEAR_SHARE * width or abs(y - height / 2) < CLEAR_SHARE * height:
        return None
    return f"{'top' if y < height / 2 else 'bottom'} {'left' if x < width / 2 else 'right'}"


def paper(rng: random.Random, size: tuple[int, int], *, tint: int = 12) -> Image.Image:
    """A light background whose colour drifts softly over the image, with sparse faint speckles."""
    base = [rng.randint(212, 242) for _ in range(3)]
    coarse = bytes(c + rng.randint(-tint, tint) for _ in range(16) for c in base)
    image = Image.frombytes("RGB", (4, 4), coarse).resize(size, Image.Resampling.BICUBIC)
    # Speckles at random places: as good as grain against a model that learns "flat = background", and the PNG
    # stays a third of the size.
    pixels = image.load()
    assert pixels is not None
    width, height = size
    for _ in range(width * height // 64):
        x, y = int(rng.random() * width), int(rng.random() * height)
        r, g, b = pixels[x, y]  # type: ignore[misc]
        pixels[x, y] = (r - 7, g - 7, b - 7)
    return image


def ring(image: Image.Image, box: PixelBox) -> None:
    """Mark what lies in a square box with a circle around it, which leaves its pixels alone."""
    side = box[2] - box[0]
    _outline(image, box, margin=0.42 * side, circle=True)


def frame(image: Image.Image, box: PixelBox) -> None:
    """Mark what lies in a square box with a square around it, which leaves its pixels alone."""
    side = box[2] - box[0]
    _outline(image, box, margin=0.3 * side, circle=False)


def _outline(image: Image.Image, box: PixelBox, margin: float, *, circle: bool) -> None:
    k, reach = MARK_OVERSAMPLE, math.ceil(margin) + 2
    side = box[2] - box[0] + 2 * reach
    mask = Image.new("L", (side * k, side * k), 0)
    pen = ImageDraw.Draw(mask)
    low, high = (reach - margin) * k, (side - reach + margin) * k - 1
    width = round(max(1.5, (box[2] - box[0]) / 9) * k)
    (pen.ellipse if circle else pen.rectangle)((low, low, high, high), outline=255, width=width)
    image.paste(INK, (box[0] - reach, box[1] - reach), mask.reduce(k))


@lru_cache(maxsize=64)
def font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: it is the same everywhere and needs no file."""
    return ImageFont.load_default(pixels)
