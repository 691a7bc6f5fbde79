"""Straight arrows between boxes: where they begin and end, what they meet, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from v1lit.data.synthetic.scene import PixelBox

GAP = 2.5
"""Pixels between a box and the tip or tail of an arrow."""
OVERSAMPLE = 3

Point = tuple[float, float]
Line = tuple[Point, Point]
"""Tail and tip of an arrow."""


def arrow_between(a: PixelBox, b: PixelBox) -> Line | None:
    """Tail and tip of the arrow between two boxes; None where it would be too short to read."""
    p, q = _centre(a), _centre(b)
    leaves, enters = _inside(a, GAP, p, q), _inside(b, GAP, p, q)
    if leaves is None or enters is None:
        return None
    tail, tip = _between(p, q, leaves[1]), _between(p, q, enters[0])
    too_short = enters[0] <= leaves[1] or math.dist(tail, tip) < 14
    return None if too_short else (tail, tip)


def passes(line: Line, box: PixelBox) -> bool:
    """Whether an arrow comes so near to a box that it might seem to touch it."""
    return _inside(box, 5, *line) is not None


def _centre(box: PixelBox) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _between(p: Point, q: Point, share: float) -> Point:
    return p[0] + share * (q[0] - p[0]), p[1] + share * (q[1] - p[1])


def _inside(box: PixelBox, margin: float, p: Point, q: Point) -> tuple[float, float] | None:
    """The part of the segment p-q inside a box with its margin, as shares of its length; None if none is."""
    low, high = 0.0, 1.0
    for axis in (0, 1):
        step = q[axis] - p[axis]
        to_low, to_high = box[axis] - margin - p[axis], box[axis + 2] + margin - p[axis]
        if step == 0:
            if to_low > 0 or to_high < 0:
                return None
            continue
        first, last = sorted((to_low / step, to_high / step))
        low, high = max(low, first), min(high, last)
    return (low, high) if low <= high else None


def cross(one: Line, two: Line) -> bool:
    """Whether two arrows meet."""

    def side(p: Point, line: Line) -> bool:
        (ax, ay), (bx, by) = line
        return (bx - ax) * (p[1] - ay) > (by - ay) * (p[0] - ax)

    return side(one[0], two) != side(one[1], two) and side(two[0], one) != side(two[1], one)


def draw_arrows(
    arrows: Sequence[Line], size: tuple[int, int], scale: float = 1.0, dot: float = 0.0
) -> Image.Image:
    """Coverage of all arrows: [height, width], 0..255, with smooth edges.

    Args:
        arrows: tail and tip of each.
        size: width and height in pixels.
        scale: of the usual thickness.
        dot: width in pixels of the dot in which each begins.
    """
    k = OVERSAMPLE
    mask = Image.new("L", (size[0] * k, size[1] * k), 0)
    pen = ImageDraw.Draw(mask)
    for (x1, y1), (x2, y2) in arrows:
        length = math.dist((x1, y1), (x2, y2))
        dx, dy = (x2 - x1) / length, (y2 - y1) / length
        head, half = 7.5 * scale, 3.6 * scale
        base = (x2 - head * dx, y2 - head * dy)
        pen.line((x1 * k, y1 * k, base[0] * k, base[1] * k), fill=255, width=round(1.6 * scale * k))
        pen.ellipse([(c + side * dot / 2) * k for side in (-1, 1) for c in (x1, y1)], fill=255)
        wings = [(base[0] + s * half * dy, base[1] - s * half * dx) for s in (1, -1)]
        pen.polygon([(x * k, y * k) for x, y in ((x2, y2), *wings)], fill=255)
    return mask.reduce(k)
