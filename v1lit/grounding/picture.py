"""A picture as a person sees it: here alone is decided which pixels an image has.

Files, bytes, shards and Pillow images all come through `as_seen`, models and drawings alike, so that a region
means the same place for all of them.
"""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

MAX_PIXELS = 2**26
"""Default limit on width x height, checked before any pixel is decoded (8192 x 8192)."""

_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_STEPS = {"L;2": 85, "L;4": 17}
"""Pillow's name of grey with few bits -> the factor by which it multiplies values when decoding."""


class ImageError(ValueError):
    """An image that cannot be used; the text is a sentence that says why."""


def as_seen(image: Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The pixels that a viewer shows, as RGB and without metadata; `image` stays unchanged.

    The EXIF orientation is applied, transparent parts stand on white, CMYK and palettes become RGB, and
    16-bit grey (modes `I;16` and `I`) is scaled to 8 bits (Pillow alone would clip nearly all of it to
    white). Of an animation this is the current frame, which is the first at the start. Doing it twice
    changes nothing. Plain RGB is returned itself: copy it before drawing on it.

    Raises ImageError for no pixels, more than `max_pixels`, damaged or cut-off data, and floating-point
    pixels, whose range nothing states.
    """
    check_size(image.size, max_pixels)
    if image.mode == "F":
        raise ImageError(
            "the image has floating-point pixels (mode F), and nothing says which value is white; "
            "scale it to 0 to 255 and convert it to L"
        )
    try:
        transparent = _transparent(image)
        image.load()
        turn = _TURNS.get(orientation(image))
        rgb = _to_rgb(image, transparent)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds, depending on the format and the damage.
        raise ImageError(f"the image data is damaged or cut off ({' '.join(str(error).split())})") from error
    if turn is not None:
        rgb = rgb.transpose(turn)
    if rgb is not image:
        rgb.info = {}  # An orientation that was kept would be applied again.
    return rgb


def check_size(size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Raise ImageError for an image without a pixel, or with more than `max_pixels`."""
    pixels = size[0] * size[1]
    if pixels <= 0:
        raise ImageError(f"the image has no pixels ({by(size)})")
    if pixels > max_pixels:
        raise ImageError(f"the image claims to have {by(size)} = {pixels} pixels, the limit is {max_pixels}")


def orientation(image: Image.Image, *, header_only: bool = False) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it is unreadable (viewers do the same).

    With `header_only`, what a PNG holds after its pixels is not looked at: that would take decoding them.
    """
    try:
        exif = Image.Image.getexif(image) if header_only else image.getexif()
        value = exif.get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:
        return 1
    return value if value in _TURNS else 1


def by(size: tuple[int, int]) -> str:
    """A size as text: `640 x 480`."""
    return f"{size[0]} x {size[1]}"


def _transparent(image: Image.Image) -> object:
    """What a file calls transparent, in the values that Pillow decodes its pixels to; None for nothing.

    To be called before the pixels are decoded: afterwards nothing says how many bits the file had.
    """
    value = image.info.get("transparency")
    tile = getattr(image, "tile", None) if image.format == "PNG" else None
    raw = tile[0].args if tile else None
    if isinstance(value, int) and raw in _PNG_STEPS:
        return value * _PNG_STEPS[raw]
    if isinstance(value, tuple) and raw == "RGB;16B":
        return tuple(channel >> 8 for channel in value)
    return value


def _to_rgb(image: Image.Image, transparent: object) -> Image.Image:
    if image.mode == "RGB" and transparent is None:
        return image  # Converting it would be a copy, a twentieth of the time that decoding a JPEG takes.
    if image.mode in _GREY16:
        image = _grey_to_8_bits(image, transparent)
    elif transparent != image.info.get("transparency"):
        image = image.copy()
        image.info["transparency"] = transparent
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        unused = image.format == "BMP" and image.getchannel("A").getextrema() == (0, 0)
        if not unused:  # Many programs leave the fourth byte of a bitmap's pixels 0 and mean nothing by it.
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _grey_to_8_bits(image: Image.Image, transparent: object) -> Image.Image:
    """Grey of 16 bits -> "L", or "LA" where the file names one transparent value."""
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if isinstance(transparent, int):
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        return Image.merge("LA", (grey, Image.fromarray(alpha)))
    return grey
