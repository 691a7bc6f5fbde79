"""Leave regions out: reasoning in words alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from v1lit.grounding.region import Region
from v1lit.revisit.strategy import RegionWriter, Strategy


@dataclass(frozen=True)
class TextOnly(Strategy):
    """Of a region nothing is written; the name of its object stays."""

    points: ClassVar[bool] = False

    def write_region(self, sequence: RegionWriter, name: str, region: Region, learn: bool) -> None:
        """Append nothing."""
