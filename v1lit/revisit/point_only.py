"""Point at the patches of a region without copying anything: all pointers have the same learned input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from v1lit.revisit.point_and_copy import PointAndCopy
from v1lit.revisit.strategy import LookModule


class Constant(LookModule):
    """The one input of all pointers, `[hidden]`."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden))

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)

    def forward(self, values: Tensor) -> Tensor:
        """The constant in place of each of `values` `[image_tokens, hidden]`."""
        # A sum of its own: a strategy may gather the weight for this call alone.
        return (self.weight.to(values.dtype) + 0.0).expand_as(values)


@dataclass(frozen=True)
class PointOnly(PointAndCopy):
    """Traces as of `point_and_copy`; a pointer's input is a learned constant."""

    def learned(self, hidden: int) -> Constant:
        return Constant(hidden)

    def copies(self, values: Tensor, learned: LookModule | None) -> Tensor:
        assert isinstance(learned, Constant)
        constants: Tensor = learned(values)
        return constants
