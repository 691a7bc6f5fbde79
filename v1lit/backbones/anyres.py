"""Where the tokens of LLaVA-NeXT and LLaVA-OneVision see an image: a base view of all of it, then tiles.

The image is fitted into one of several canvases and padded; a tower reads the canvas tile by tile. Rows and
columns of tokens that saw padding are cut off, many tokens are shrunk to fewer, and behind every row stands a
newline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from v1lit.grounding.patch_map import NOT_SPATIAL, OVERVIEW, TILE, Floats, PatchMap, Views
from v1lit.grounding.region import Size

SHRUNK_ABOVE = 1.1
"""A grid is shrunk if it has more than this times the rows and columns of the largest that may stay."""


def best_canvas(image_size: Size, canvases: Sequence[Sequence[int]]) -> Size:
    """The `(width, height)` of the `(height, width)` canvases that keeps most of an image's pixels.

    Among those that keep as many, the one that wastes fewest.
    Source: transformers, image_processing_utils.py, `select_best_resolution`.
    """
    width, height = image_size

    def kept_and_wasted(canvas: Sequence[int]) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    rows, cols = max(canvases, key=kept_and_wasted)
    return cols, rows


def fitted_size(image_size: Size, canvas: Size) -> Size:
    """The size of an image that has been fitted into a canvas, aspect kept.

    Source: transformers, image_processing_utils.py, `get_patch_output_size`.
    """
    (width, height), (across, down) = image_size, canvas
    if across / width < down / height:
        return across, min(math.ceil(height * (across / width)), down)
    return min(math.ceil(width * (down / height)), across), down


def unpadded(image_size: Size, rows: int, cols: int) -> tuple[slice, slice]:
    """Rows and columns that are left of a canvas's grid when those of its padding are cut off.

    Source: transformers, models/llava_next/modeling_llava_next.py, `unpad_image`.
    """
    width, height = image_size
    if width / height > cols / rows:
        cut = (rows - int(round(height * (cols / width), 7))) // 2
        return slice(cut, rows - cut), slice(0, cols)
    cut = (cols - int(round(width * (rows / height), 7))) // 2
    return slice(0, rows), slice(cut, cols - cut)


def shrunk_shape(rows: int, cols: int, most: int) -> tuple[int, int]:
    """Rows and columns of a grid of which about `most` tokens may stay.

    Source: transformers, models/llava_onevision/modeling_llava_onevision.py, `pack_image_features`.
    """
    ratio = math.sqrt(rows * cols / most)
    return (int(rows // ratio), int(cols // ratio)) if ratio > SHRUNK_ABOVE else (rows, cols)


def base_map(image_size: Size, side: int, patch: int, views: Views, padded: bool = False) -> PatchMap:
    """The map of a whole image that was resized to a square of `side` pixels, or first padded to a square.

    Pixels beyond the last whole patch of `patch` are seen by no token.
    """
    width, height = image_size
    left = top = 0
    if padded:
        left, top = (max(image_size) - width) // 2, (max(image_size) - height) // 2
        width = height = max(image_size)
    cells = side // patch
    right, lower = (cells * patch * length / side for length in (width, height))
    box = (-float(left), -float(top), right - left, lower - top)
    return PatchMap.grid(image_size, rows=cells, cols=cells, box=box, view=OVERVIEW, views=views)


def tiles_map(
    image_size: Size, canvas: Size, side: int, patch: int, views: Views, most: int | None = None
) -> PatchMap:
    """The map of the tiles of `side` pixels that a canvas is cut into, one newline behind each row of tokens.

    A token of a grid that was shrunk to about `most` tokens sees what the tokens do that it was made of.
    """
    fitted = fitted_size(image_size, canvas)
    cols, rows = (_cells(length // side, side, patch) for length in canvas)
    kept_rows, kept_cols = unpadded(image_size, len(rows), len(cols))
    rows, cols = rows[kept_rows], cols[kept_cols]
    if most is not None and len(rows) and len(cols):
        fewer_rows, fewer_cols = shrunk_shape(len(rows), len(cols), most)
        rows, cols = _shrunk(rows, fewer_rows), _shrunk(cols, fewer_cols)
    cols, rows = (
        np.clip((cells - (length - inside) // 2) * whole / inside, 0, whole)
        for cells, length, inside, whole in zip((cols, rows), canvas, fitted, image_size, strict=True)
    )
    boxes = np.full((len(rows), len(cols) + 1, 4), np.nan)
    boxes[:, :-1, 0::2], boxes[:, :-1, 1::2] = cols, rows[:, None]
    seen = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    boxes[~seen] = np.nan
    return PatchMap(image_size, boxes.reshape(-1, 4), np.where(seen, TILE, NOT_SPATIAL).ravel(), views)


def _cells(tiles: int, side: int, patch: int) -> Floats:
    """`[cells, 2]`: lower and upper edges of the patches along one axis of a canvas, in its pixels."""
    starts = np.arange(tiles)[:, None] * side + np.arange(side // patch) * patch
    return (starts.reshape(-1, 1) + np.array([0, patch])).astype(np.float64)


def _shrunk(cells: Floats, number: int) -> Floats:
    """`[number, 2]`: from the first to the last cell that has a weight when an axis is resized, bilinearly.

    Source: torch, aten/src/ATen/native/UpSample.h, `area_pixel_compute_source_index` without aligned corners.
    """
    if number == len(cells):
        return cells
    # In halves of one n-th of a cell, to stay with whole numbers.
    places = np.maximum((2 * np.arange(number) + 1) * len(cells) - number, 0)
    first, rest = np.divmod(places, 2 * number)
    last = np.minimum(first + (rest > 0), len(cells) - 1)
    return np.stack([cells[first, 0], cells[last, 1]], axis=1)
