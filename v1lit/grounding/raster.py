"""Boxes, polygons and masks as arrays of pixels, and exact areas of unions of boxes.

A pixel `(column, row)` belongs to a shape if its centre `(column + 0.5, row + 0.5)` does, left and upper
edges included, right and lower edges not. Shapes that share an edge therefore never share a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def fill_boxes(boxes: Floats, image_size: tuple[int, int]) -> Mask:
    """`[height, width]`: the pixels whose centre lies in one of `boxes` `[boxes, 4]`."""
    width, height = image_size
    mask = np.zeros((height, width), dtype=bool)
    limits = np.array([width, height, width, height])
    for x1, y1, x2, y2 in np.clip(np.ceil(boxes - 0.5), 0, limits).astype(int).tolist():
        mask[y1:y2, x1:x2] = True
    return mask


def fill_polygon(points: Floats, image_size: tuple[int, int]) -> Mask:
    """`[height, width]`: the pixels whose centre lies in the polygon `points` `[points, 2]`, even-odd rule.

    An edge crosses the line through the centres of some rows of pixels, and every crossing flips all pixels
    right of it, from outside to inside or back.
    """
    width, height = image_size
    start, end = points, np.roll(points, -1, axis=0)
    down = start[:, 1:] <= end[:, 1:]
    upper, lower = np.where(down, start, end), np.where(down, end, start)
    first, stop = (np.clip(np.ceil(ends[:, 1] - 0.5), 0, height).astype(int) for ends in (upper, lower))
    # One entry for every crossing: its edge, the row of pixels, and where in the row it is.
    edge = np.repeat(np.arange(len(points)), stop - first)
    row = np.concatenate([np.arange(a, b) for a, b in zip(first, stop, strict=True)])
    slope = (lower[edge, 0] - upper[edge, 0]) / (lower[edge, 1] - upper[edge, 1])
    x = upper[edge, 0] + (row + 0.5 - upper[edge, 1]) * slope
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
    flips = np.zeros((height, width + 1), dtype=np.int32)
    np.add.at(flips, (row, column), 1)
    return np.cumsum(flips[:, :width], axis=1) % 2 == 1


def fill_touched(bounds: Sequence[float], image_size: tuple[int, int]) -> Mask:
    """`[height, width]`: every pixel that the box `bounds` touches, however little of it."""
    width, height = image_size
    x1, y1 = (int(np.floor(v)) for v in bounds[:2])
    x2, y2 = (int(np.ceil(v)) for v in bounds[2:])
    mask = np.zeros((height, width), dtype=bool)
    mask[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
    return mask


def mask_bounds(mask: Mask) -> tuple[int, int, int, int]:
    """The smallest box `(x1, y1, x2, y2)` around the pixels of a mask that has some."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def encode_runs(mask: Mask) -> list[int]:
    """Lengths of runs of equal pixels, row by row; the first (perhaps of length 0) is outside the mask."""
    flat = mask.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def decode_runs(runs: Sequence[int], image_size: tuple[int, int]) -> Mask:
    """The mask that `encode_runs` wrote; the runs must add up to the pixels of `image_size`."""
    width, height = image_size
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


def union_area(boxes: Floats) -> float:
    """The area, in square pixels, that at least one of `boxes` `[boxes, 4]` covers."""
    xs, ys = np.unique(boxes[:, [0, 2]]), np.unique(boxes[:, [1, 3]])
    return float(np.diff(ys) @ _covered(boxes, xs, ys) @ np.diff(xs))


def shared_area(a: Floats, b: Floats) -> float:
    """The area, in square pixels, that `a` and `b` both cover, each a union of boxes `[boxes, 4]`."""
    both = np.concatenate([a, b])
    xs, ys = np.unique(both[:, [0, 2]]), np.unique(both[:, [1, 3]])
    return float(np.diff(ys) @ (_covered(a, xs, ys) & _covered(b, xs, ys)) @ np.diff(xs))


def _covered(boxes: Floats, xs: Floats, ys: Floats) -> Mask:
    """`[len(ys) - 1, len(xs) - 1]`: the cells of the grid `xs` x `ys` that boxes with edges on it cover."""
    x1, x2 = np.searchsorted(xs, boxes[:, 0]), np.searchsorted(xs, boxes[:, 2])
    y1, y2 = np.searchsorted(ys, boxes[:, 1]), np.searchsorted(ys, boxes[:, 3])
    steps = np.zeros((len(ys), len(xs)), dtype=np.int64)
    for rows, columns, sign in ((y1, x1, 1), (y2, x2, 1), (y1, x2, -1), (y2, x1, -1)):
        np.add.at(steps, (rows, columns), sign)
    return steps.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
