"""Point at the patches of a region without copying anything: all pointers have the same learned input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from v1lit.revisit.constant import Constant
from v1lit.revisit.point_and_copy import PointAndCopy
from v1lit.revisit.strategy import LookModule


@dataclass(frozen=True)
class PointOnly(PointAndCopy):
    """Traces as of `point_and_copy`; a pointer's input is a learned constant."""

    def learned(self, hidden: int) -> Constant:
        return Constant(hidden)

    def copies(self, values: Tensor, learned: LookModule | None) -> Tensor:
        assert isinstance(learned, Constant)
        constants: Tensor = learned(values)
        return constants
