"""Small images as files have them; those of random pixels are `v1lit.testing.models.noise`."""

from __future__ import annotations

import io

from PIL import Image


def encoded(
    size: tuple[int, int] = (60, 40), color: str | tuple[int, int, int] = (90, 120, 30), kind: str = "PNG"
) -> bytes:
    """The bytes of an image of one colour; `size` is `(width, height)`."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()
