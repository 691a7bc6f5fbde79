"""The pointer head: two small projections and, if wanted, a gate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from v1lit.pointer.config import PointerConfig
from v1lit.revisit.constant import Constant


class PointerHead(nn.Module):
    """Scores image tokens from the last hidden state: `(W_q h + b_q) . (W_k k + b_k) / sqrt(hidden)`.

    The scale uses the backbone's hidden size whatever the width of the projections.
    With `ends` there is one key more, which is learned itself: the end of a run of pointers, with the vector
    that stands at its input. Source: jun297/v1, v1/modeling_v1.py, lines 50-69 and 318-375; the end: "no more
    points" of MolmoPoint, arXiv 2603.28069.
    """

    def __init__(self, hidden_size: int, config: PointerConfig, ends: bool = False) -> None:
        super().__init__()
        width = config.width or hidden_size
        self.scale = 1.0 / math.sqrt(hidden_size)
        self.normalize = config.normalize
        self.query = nn.Linear(hidden_size, width)
        self.key = None if config.tie_heads else nn.Linear(hidden_size, width)
        self.gate = nn.Linear(hidden_size, 1, bias=False) if config.gate else None
        self.end_key = Constant(width) if ends else None
        self.end_input = Constant(hidden_size) if ends else None
        self.identity_init = config.identity_init

    def init_weights(self, std: float) -> None:
        """Normal weights of deviation `std` or the scaled identity; the gate starts at w = 0, so g = 1/2.

        Source: jun297/v1, v1/modeling_v1.py, lines 19-31 and 74-96.
        """
        for projection in (self.query, self.key):
            if projection is None:
                continue
            if self.identity_init:
                nn.init.eye_(projection.weight)
                projection.weight.data.mul_(self.scale)
            else:
                nn.init.normal_(projection.weight, std=std)
            nn.init.zeros_(projection.bias)
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
        for constant in (self.end_key, self.end_input):
            if constant is not None:
                constant.init_weights(std)

    def project_queries(self, states: Tensor) -> Tensor:
        """`[..., hidden]` -> `[..., width]`."""
        return self.query(self._normalized(states))

    def project_keys(self, states: Tensor) -> Tensor:
        """`[..., hidden]` -> `[..., width]`."""
        return (self.query if self.key is None else self.key)(self._normalized(states))

    def scores(self, queries: Tensor, keys: Tensor, floor: Tensor) -> Tensor:
        """`[batch, tokens, pointers]`: pointer logits in float32, the lowest float where masked.

        Of queries `[batch, tokens, width]`, keys `[batch, pointers, width]` and a `PointerMemory`'s floor.
        """
        return torch.add(floor, (queries @ keys.transpose(1, 2)).float(), alpha=self.scale)

    def gate_values(self, states: Tensor) -> Tensor | None:
        """`[..., hidden]` -> `[..., 1]`: g in float32; None without a gate."""
        return None if self.gate is None else torch.sigmoid(self.gate(states).float())

    def _normalized(self, states: Tensor) -> Tensor:
        return nn.functional.normalize(states, dim=-1) if self.normalize else states
