"""Write a region's box as text, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from v1lit.errors import check_choices, check_least
from v1lit.grounding.markup import REGION, REGION_END
from v1lit.grounding.region import Box, Region, Size, format_box
from v1lit.revisit.strategy import GROUP, RegionWriter, Strategy


@dataclass(frozen=True)
class Coordinates(Strategy):
    """`<region>[x1, y1, x2, y2]</region>`: the corners of the box as numbers."""

    points: ClassVar[bool] = False

    format: Literal["shares", "bins", "pixels"] = "shares"
    """Shares of the sides with two decimals, numbers of bins, or pixels of the original image."""
    bins: int = 1000
    """Bins of a side, for `bins`: the first is 0."""

    GROUP: ClassVar[str] = GROUP

    def __post_init__(self) -> None:
        check_choices(self)
        check_least(self, 2, "bins")

    def write_region(self, sequence: RegionWriter, name: str, region: Region, learn: bool) -> None:
        size = sequence.patch_maps[region.image].image_size
        sequence.add_text(REGION + self.text(region.box, size) + REGION_END, learn)

    def text(self, box: Box, size: Size) -> str:
        """A box in pixels of an image of this size `(width, height)`, as it is written."""
        if self.format == "shares":
            return format_box(box, size)
        if self.format == "pixels":
            return f"[{', '.join(str(round(value)) for value in box)}]"
        numbers = (
            min(self.bins - 1, int(value / side * self.bins))
            for value, side in zip(box, size * 2, strict=True)
        )
        return f"[{', '.join(map(str, numbers))}]"

    def pixels(self, numbers: Sequence[float], size: Size) -> Box:
        """The box that `text` writes with these four numbers, in pixels of an image of this size."""
        if self.format == "bins":
            numbers = [*numbers[:2], *(number + 1 for number in numbers[2:])]  # to the end of their bins
        parts = {"shares": 1, "bins": self.bins, "pixels": 0}[self.format]
        pixels = (n * side / parts if parts else n for n, side in zip(numbers, size * 2, strict=True))
        x1, y1, x2, y2 = pixels
        return x1, y1, x2, y2
