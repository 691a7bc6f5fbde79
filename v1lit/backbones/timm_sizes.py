"""How large an image is drawn for a timm tower: arithmetic only, the same for pixels and patch maps."""

from __future__ import annotations

import math

from v1lit.grounding.region import Size

LARGEST = 100.0
CLOSE = 1e-5
"""Largest enlargement, and how exactly it is searched. Source: timm, data/naflex_transforms.py."""


def drawn_size(image_size: Size, canvas: Size, fit: str) -> Size:
    """`(width, height)` of an image on a canvas: all of it, or with "pad" as large as its aspect allows."""
    if fit != "pad":
        return canvas
    (width, height), (canvas_width, canvas_height) = image_size, canvas
    if width * canvas_height >= height * canvas_width:
        return canvas_width, max(1, round(height * canvas_width / width))
    return max(1, round(width * canvas_height / height)), canvas_height


def kept_grid(image_size: Size, patch: int, max_tokens: int, scale: int = 1) -> tuple[int, int]:
    """Rows and columns of patches for an image whose aspect is kept: as many as `max_tokens` allows.

    Both are multiples of `scale`. With 1 it is the grid of timm's `ResizeToSequence`. Source: timm,
    data/naflex_transforms.py, `get_image_size_for_seq`, from FlexiViT and NaViT (arXiv 2307.06304).
    """
    width, height = image_size
    cell, most = patch * scale, max_tokens // scale**2

    def cells(ratio: float) -> tuple[int, int]:
        return max(1, math.ceil(height * ratio / cell)), max(1, math.ceil(width * ratio / cell))

    low, high = CLOSE / 10, LARGEST
    while high - low >= CLOSE:
        middle = (low + high) / 2
        rows, columns = cells(middle)
        low, high = (middle, high) if rows * columns <= most else (low, middle)
    rows, columns = cells(low)
    return rows * scale, columns * scale


def canvas_grid(canvas: Size, patch: int, rounding: str) -> tuple[int, int]:
    """Rows and columns of patches that a tower makes of a canvas of this `(width, height)`."""
    width, height = canvas
    if rounding == "ceil":
        return -(-height // patch), -(-width // patch)
    return height // patch, width // patch
