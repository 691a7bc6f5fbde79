"""The published rules from a region of an image to its tokens, one token at a time, nothing of `v1lit`."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def resized(size: tuple[int, int], side: int, smallest: int, largest: int) -> tuple[int, int]:
    """Width and height after resizing to multiples of `side`, the area kept between the limits in pixels."""
    width, height = (max(side, round(length / side) * side) for length in size)
    area = size[0] * size[1]
    if width * height > largest:
        factor = math.sqrt(area / largest)
        width, height = (max(side, math.floor(length / factor / side) * side) for length in size)
    elif width * height < smallest:
        factor = math.sqrt(smallest / area)
        width, height = (math.ceil(length * factor / side) * side for length in size)
    return width, height


def tokens_of_box(
    box: tuple[float, float, float, float], size: tuple[int, int], new: tuple[int, int], side: int
) -> list[int]:
    """Every token that the box touches: lower edges floored, upper edges ceiled."""
    columns, rows = new[0] // side, new[1] // side
    x1, x2 = (box[n] * new[0] / size[0] / side for n in (0, 2))
    y1, y2 = (box[n] * new[1] / size[1] / side for n in (1, 3))
    return [
        row * columns + column
        for row in range(rows)
        for column in range(columns)
        if math.floor(x1) <= column < math.ceil(x2) and math.floor(y1) <= row < math.ceil(y2)
    ]


def tokens_of_ellipse(
    ellipse: tuple[float, float, float, float], size: tuple[int, int], new: tuple[int, int], side: int
) -> list[int]:
    """Every token that has some of the mask after an antialiased resampling to the grid of tokens."""
    cx, cy, rx, ry = ellipse
    x, y = torch.arange(size[0], dtype=torch.float64), torch.arange(size[1], dtype=torch.float64)
    distance = ((x[None] - cx) / max(rx, 1)) ** 2 + ((y[:, None] - cy) / max(ry, 1)) ** 2
    mask = (distance <= 1).float()[None, None]
    grid = (new[1] // side, new[0] // side)
    values = F.interpolate(mask, size=grid, mode="bilinear", antialias=True)
    return (values.flatten() > 0).nonzero().flatten().tolist()
