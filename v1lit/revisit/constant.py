"""One learned vector, wherever it is needed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v1lit.revisit.strategy import LookModule


class Constant(LookModule):
    """A learned vector, `[width]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)

    def forward(self, values: Tensor) -> Tensor:
        """The constant in place of each of `values` `[n, width]`, in their type; 0 where they are wider."""
        # A tensor of its own: a strategy may gather the weight for this call alone.
        constant = self.weight.to(values.dtype) + 0.0
        return F.pad(constant, (0, values.shape[1] - len(constant))).expand_as(values)
