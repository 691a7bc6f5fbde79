"""Whether the boxes of an import look like another format than the one that was declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from v1lit.data.importing.box_format import FULL, ORDERS, UNITS, BoxFormat
from v1lit.grounding.region import Size

MOST_COUNTED = 1000
"""Boxes of a unit that are compared with all formats; more say nothing new."""
LEAST, FEWEST = 5, 20
"""Boxes below which nothing is said, and below which how far they reach says nothing."""
NEARLY_ALL, FEW = 0.95, 0.8
"""Shares of the boxes that another format must explain, and that the declared one may fail to."""
FAR, LITTLE = 0.9, 0.67
"""Shares of an image's width or height: what some box of many reaches, and what none may stay below."""

CANDIDATES = tuple(BoxFormat(unit, order) for unit, order in product(UNITS, ORDERS) if order != "point")
POINTS = tuple(BoxFormat(unit, "point") for unit in UNITS)


@dataclass
class BoxTally:
    """How many boxes could be what, counted as they are read."""

    boxes: dict[int, int] = field(default_factory=dict)
    """Numbers of a box (4) or point (2) -> how many were counted."""
    fits: dict[str, int] = field(default_factory=dict)
    """Format -> how many are possible boxes of it."""
    reach: dict[str, float] = field(default_factory=dict)
    """Format -> the farthest edge of any that fits, as share of the image's width or height."""

    def add(self, numbers: Sequence[float], size: Size, declared: BoxFormat) -> None:
        """Count a box, as it is written, on an image of that size in pixels."""
        kind = len(numbers)
        if self.boxes.get(kind, 0) >= MOST_COUNTED:
            return
        self.boxes[kind] = self.boxes.get(kind, 0) + 1
        for candidate in {declared, *(POINTS if kind == 2 else CANDIDATES)}:
            try:
                placed = candidate.to_pixels(numbers, size)
            except ValueError:
                continue
            name = f"{kind}:{candidate}"
            self.fits[name] = self.fits.get(name, 0) + 1
            far = max(placed[-2] / size[0], placed[-1] / size[1])
            self.reach[name] = max(self.reach.get(name, 0.0), round(far, 6))

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add what was counted elsewhere, as of `to_json`."""
        for kind, count in other["boxes"].items():
            self.boxes[int(kind)] = self.boxes.get(int(kind), 0) + count
        for name, count in other["fits"].items():
            self.fits[name] = self.fits.get(name, 0) + count
        for name, far in other["reach"].items():
            self.reach[name] = max(self.reach.get(name, 0.0), far)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "boxes": {str(kind): count for kind, count in sorted(self.boxes.items())},
            "fits": dict(sorted(self.fits.items())),
            "reach": dict(sorted(self.reach.items())),
        }

    def doubts(self, declared: BoxFormat) -> list[str]:
        """Sentences on boxes, and on points, that look like another format than the declared one."""
        found = (self._doubt(kind, declared) for kind in sorted(self.boxes))
        return [doubt for doubt in found if doubt]

    def _doubt(self, kind: int, declared: BoxFormat) -> str | None:
        counted, name = self.boxes[kind], f"{kind}:{declared}"
        fits, reach = self.fits.get(name, 0), self.reach.get(name, 0.0)
        things = "points" if kind == 2 else "boxes"
        others = POINTS if kind == 2 else CANDIDATES
        better = [other for other in others if other != declared and self._explains(kind, other, fits, reach)]
        if counted < LEAST or not better:
            return None
        best = max(better, key=lambda other: self._merit(kind, other, declared))
        if fits < FEW * counted:
            said = f"only {fits} of {counted} {things} can be {declared}"
        else:
            said = f"{counted} {things}, taken as {declared}, reach over {reach:.1%} of their images only"
        return f"{said}; they look like {best}: is that what they are? (--box-unit, --box-order)"

    def _merit(self, kind: int, other: BoxFormat, declared: BoxFormat) -> tuple[bool, int, int]:
        """Of a format that explains them: whether some reach far, how many fit, how like the declared one."""
        name = f"{kind}:{other}"
        alike = 2 * (other.unit == declared.unit) + (other.order == declared.order)
        return self.reach[name] > LITTLE, self.fits[name], alike

    def _explains(self, kind: int, other: BoxFormat, fits: int, reach: float) -> bool:
        """Whether another format explains the boxes, and the declared one, with these figures, does not."""
        counted, name = self.boxes[kind], f"{kind}:{other}"
        if self.fits.get(name, 0) < NEARLY_ALL * counted:
            return False
        far = self.reach[name]
        if fits < FEW * counted:
            return True
        return counted >= FEWEST and reach < LITTLE and far > FAR and other.unit in FULL and far > 1.3 * reach
