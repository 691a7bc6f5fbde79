"""What the numbers of foreign boxes and points mean, and where they lie in pixels of the original image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import ClassVar, Literal, get_args

from v1lit.errors import OptionError, check_choices, explain_unknown
from v1lit.grounding.region import Region, Size

Unit = Literal["pixels", "0-1", "0-100", "0-1000"]
Order = Literal["xyxy", "xywh", "cxcywh", "point"]
Of = Literal["original", "resized", "padded"]

UNITS: tuple[Unit, ...] = get_args(Unit)
ORDERS: tuple[Order, ...] = get_args(Order)
IMAGES: tuple[Of, ...] = get_args(Of)
FULL = {"0-1": 1.0, "0-100": 100.0, "0-1000": 1000.0}
"""What the whole width or height is in a unit other than pixels."""
SLACK = 1.0
"""Pixels that a box may reach over the edge, where a foreign tool rounded; it is cut there."""

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class BoxFormat:
    """What the numbers of a box or point mean; declared once for an import."""

    GROUP: ClassVar[str] = "box_format"

    unit: Unit = "pixels"
    """Pixels, or shares, hundredths or thousandths of the width and height of the image that `of` names."""
    order: Order = "xyxy"
    """Two corners; a corner and the size; the center and the size; or a point, as two numbers always are."""
    of: Of = "original"
    """The image as it is, stretched to `size`, or in the middle of a square as long as its longer side."""
    size: tuple[int, int] | None = None
    """Width and height in pixels of the resized image; only needed for pixels of it."""

    def __post_init__(self) -> None:
        check_choices(self)
        needed = self.of == "resized" and self.unit == "pixels"
        if needed and (self.size is None or len(self.size) != 2 or min(self.size) < 1):
            why = "pixels of a resized image need its width and height"
            raise OptionError("size", self.size, why, self.GROUP)
        if not needed and self.size is not None:
            why = "only pixels of a resized image (unit pixels, of resized) need one"
            raise OptionError("size", self.size, why, self.GROUP)

    def __str__(self) -> str:
        of = self.of if self.size is None else f"resized to {self.size[0]}x{self.size[1]}"
        return f"{self.order}, {self.unit} of the {of} image"

    def region(self, numbers: Sequence[float], size: Size, image: int = 0) -> Region:
        """The region of a box, or of the one pixel in which a point lies.

        Args:
            numbers: as written.
            size: width and height of the original image, in pixels.
            image: number of the image in its example.

        Raises ValueError for what cannot be on that image.
        """
        placed = self.to_pixels(numbers, size)
        if (
            len(placed) == 2
        ):  # A pixel lies in one patch, which two or four would share if a box stood around it.
            left, top = (min(int(at), end - 1) for at, end in zip(placed, size, strict=True))
            placed = (left, top, left + 1, top + 1)
        return Region.from_box(placed, image)

    def to_pixels(self, numbers: Sequence[float], size: Size) -> Numbers:
        """A box as `(left, top, right, bottom)`, or a point as `(x, y)`, in pixels of the original image.

        Raises ValueError for what cannot be on an image of that width and height.
        """
        corners = self._corners(_checked(numbers))
        side = max(size)
        margin = [(side - length) // 2 if self.of == "padded" else 0 for length in size]
        seen = (side, side) if self.of == "padded" else size
        full = (FULL[self.unit],) * 2 if self.unit != "pixels" else self.size or seen
        placed = [at * seen[i % 2] / full[i % 2] - margin[i % 2] for i, at in enumerate(corners)]
        if any(not -SLACK <= at <= size[i % 2] + SLACK for i, at in enumerate(placed)):
            told = [round(at, 1) for at in placed]
            raise ValueError(
                f"{list(numbers)} ({self}) is {told} in pixels, outside of the {size[0]}x{size[1]} image"
            )
        inside = tuple(min(max(at, 0.0), float(size[i % 2])) for i, at in enumerate(placed))
        if len(inside) == 4 and not (inside[0] < inside[2] and inside[1] < inside[3]):
            raise ValueError(f"{list(numbers)} ({self}) has no area")
        return inside

    def _corners(self, numbers: Numbers) -> Numbers:
        if len(numbers) == 2:
            return numbers
        if self.order == "point":
            raise ValueError(f"{list(numbers)} is no point: it has four numbers")
        x, y, w, h = numbers
        if self.order == "xywh":
            return (x, y, x + w, y + h)
        if self.order == "cxcywh":
            return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        return numbers


def read_box_format(given: object) -> BoxFormat:
    """A box format from YAML: an object with some of the fields.

    Raises ValueError for anything else, OptionError for values that cannot be.
    """
    if not isinstance(given, dict):
        raise ValueError(f"box_format is {given!r:.60}; it has the keys unit, order, of and size")
    allowed = [field.name for field in fields(BoxFormat)]
    for key in given:
        if key not in allowed:
            raise ValueError(explain_unknown("key of box_format", key, allowed))
    size = given.get("size")
    return BoxFormat(**{**given, "size": tuple(size) if isinstance(size, list | tuple) else size})


def _checked(numbers: object) -> Numbers:
    if not isinstance(numbers, list | tuple) or len(numbers) not in (2, 4):
        raise ValueError(f"{numbers!r:.80} is neither a box of four numbers nor a point of two")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not isfinite(number):
            raise ValueError(f"{list(numbers)!r:.80} holds {number!r:.40}, which is no finite number")
    return tuple(float(number) for number in numbers)
