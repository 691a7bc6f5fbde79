"""How foreign data write their boxes, and boxes of every such format as pixels of the original image."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Literal

from v1lit.errors import OptionError

Numbers = tuple[float, ...]

UNITS = ("pixels", "0-1", "0-1000")
ORDERS = ("xyxy", "xywh", "cxcywh", "point")
IMAGES = ("original", "resized", "padded")
SLACK = 1.0
"""Pixels that a box may reach over the edge, where a foreign tool rounded; it is cut there."""


@dataclass(frozen=True)
class BoxFormat:
    """What the numbers of a box mean, declared once for an import."""

    GROUP: ClassVar[str] = "box_format"

    unit: Literal["pixels", "0-1", "0-1000"] = "pixels"
    """Pixels, or shares (thousandths) of the width and height of the image that `of` names."""
    order: Literal["xyxy", "xywh", "cxcywh", "point"] = "xyxy"
    """Two corners; a corner and the size; the center and the size; or x and y of a point."""
    of: Literal["original", "resized", "padded"] = "original"
    """The image as it is, stretched to `size`, or in the middle of a square as long as its longer side."""
    size: tuple[int, int] | None = None
    """Width and height in pixels of the resized image; only needed for pixels of it."""

    def __post_init__(self) -> None:
        for field, allowed in (("unit", UNITS), ("order", ORDERS), ("of", IMAGES)):
            if (given := getattr(self, field)) not in allowed:
                raise OptionError(field, given, f"allowed are {', '.join(allowed)}", self.GROUP)
        needed = self.of == "resized" and self.unit == "pixels"
        if needed and (self.size is None or min(self.size) < 1):
            raise OptionError(
                "size", self.size, "pixels of a resized image need its width, height", self.GROUP
            )
        if not needed and self.size is not None:
            why = "only pixels of a resized image (unit=pixels, of=resized) need one"
            raise OptionError("size", self.size, why, self.GROUP)

    def to_pixels(self, numbers: Numbers, width: int, height: int) -> Numbers:
        """A box as (left, top, right, bottom), or a point as (x, y), in pixels of the original image.

        Raises ValueError for one that cannot be on an image of that width and height.
        """
        count = 2 if self.order == "point" else 4
        if len(numbers) != count or not all(isfinite(number) for number in numbers):
            raise ValueError(f"{list(numbers)} is not {count} finite numbers ({self.order})")
        corners = self._corners(numbers)
        side = max(width, height)
        frame = (side, side) if self.of == "padded" else self.size or (width, height)
        margin = ((side - width) // 2, (side - height) // 2) if self.of == "padded" else (0, 0)
        per_image = {"pixels": frame, "0-1": (1, 1), "0-1000": (1000, 1000)}[self.unit]
        original = (side, side) if self.of == "padded" else (width, height)
        placed = [
            number * original[i % 2] / per_image[i % 2] - margin[i % 2] for i, number in enumerate(corners)
        ]
        for i, number in enumerate(placed):
            if not -SLACK <= number <= (width, height)[i % 2] + SLACK:
                told = [round(number, 1) for number in placed]
                raise ValueError(
                    f"{list(numbers)} is {told} in pixels, outside of the {width}x{height} image"
                )
        inside = tuple(
            min(max(number, 0.0), float((width, height)[i % 2])) for i, number in enumerate(placed)
        )
        if count == 4 and not (inside[0] < inside[2] and inside[1] < inside[3]):
            raise ValueError(f"{list(numbers)} has no area ({self.order})")
        return inside

    def _corners(self, numbers: Numbers) -> Numbers:
        if self.order == "xywh":
            x, y, w, h = numbers
            return (x, y, x + w, y + h)
        if self.order == "cxcywh":
            x, y, w, h = numbers
            return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        return numbers
