"""Image options as users and checkpoints write them, checked, and the image processor that they make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from PIL import Image

from v1lit.errors import OptionError
from v1lit.grounding.region import Size

PIXEL_OPTIONS = ("do_normalize", "do_rescale", "image_mean", "image_std", "resample", "rescale_factor")
"""Taken over: they change pixel values, but not which pixels a token sees."""
RESAMPLING = range(6)
"""Pillow's numbers of resampling filters."""


@dataclass
class ImageProcessor:
    """A transformers image processor together with what decides which pixels a token sees.

    Pixels and patch map are both made from `options`, so they cannot disagree.
    """

    processor: Any
    """The transformers image processor."""
    options: dict[str, Any]
    """The backbone's image options in their canonical form."""
    max_side: int | None
    """Cap of the longer side in pixels, applied before the processor; None for no cap."""
    arguments: dict[str, Any]
    """What the processor is called with: the options as it spells them, and pixel options."""


def check_positive(name: str, value: Any) -> int:
    """The value as an int. Raises ValueError if it is no positive integer."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise OptionError(name, value, "it must be a positive integer")
    return int(value)


def check_flag(name: str, value: Any) -> bool:
    """The value. Raises ValueError if it is no bool."""
    if not isinstance(value, bool):
        raise OptionError(name, value, "it must be true or false")
    return value


def check_pixel_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError for a value of `PIXEL_OPTIONS` that no image can be made with; None is allowed."""
    for key in ("image_mean", "image_std"):
        value = options.get(key)
        numbers: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
        if value is not None and not (len(numbers) in (1, 3) and all(map(_is_number, numbers))):
            raise OptionError(key, value, "give one number, or one for each of three colours")
        if key == "image_std" and value is not None and not all(number > 0 for number in numbers):
            raise OptionError(key, value, "it must be above 0")
    factor = options.get("rescale_factor")
    if factor is not None and not (_is_number(factor) and factor > 0):
        raise OptionError("rescale_factor", factor, "it must be a number above 0")
    for key in ("do_rescale", "do_normalize"):
        if options.get(key) not in (None, True, False):
            raise OptionError(key, options[key], "it must be true or false")
    resample = options.get("resample")
    if resample is not None and resample not in RESAMPLING:
        why = f"give one of Pillow's filters, 0 to {RESAMPLING[-1]} (3: bicubic)"
        raise OptionError("resample", resample, why)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def as_size(name: str, value: Any, *also: str) -> dict[str, int]:
    """A size as `{"height", "width"}`, from that or one number for a square; `also` names single keys."""
    size = {"height": value, "width": value} if isinstance(value, int) else value
    if not isinstance(size, Mapping) or (
        set(size) != {"height", "width"} and [*size] not in [[key] for key in also]
    ):
        allowed = " or ".join(["one number", *also, "height and width"])
        raise OptionError(name, value, f"give {allowed}")
    return {key: check_positive(f"{name}.{key}", size[key]) for key in size}


def plain_size(size: Any) -> dict[str, int]:
    """A size of transformers, which is a mapping or an object with optional fields, as a plain dict."""
    return {key: int(value) for key, value in dict(size).items() if value is not None}


def check_image_size(image_size: Size) -> Size:
    """`(width, height)` as ints. Raises ValueError if they are not two positive integers."""
    try:
        width, height = image_size
    except (TypeError, ValueError):
        raise ValueError(f"image_size must be (width, height), not {image_size!r}") from None
    return check_positive("image width", width), check_positive("image height", height)


def capped_size(image_size: Size, max_side: int | None) -> Size:
    """Size after the longer side has been capped, aspect kept, each side at least one pixel.

    Source: jun297/v1, dataset.py at 5ea4620, lines 97-107, which truncates instead of rounding.
    """
    width, height = image_size
    longer = max(width, height)
    if max_side is None or longer <= max_side:
        return image_size
    return max(1, round(width * max_side / longer)), max(1, round(height * max_side / longer))


def capped(image: Image.Image, max_side: int | None) -> Image.Image:
    """The image, made smaller where its longer side has more than `max_side` pixels."""
    size = capped_size(image.size, max_side)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
