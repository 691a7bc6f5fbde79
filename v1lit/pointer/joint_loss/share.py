"""`LossShare`: the loss of one batch on several ranks that all have its states, a part of it on each.

Of T ranks, each goes backward from T times its part of the sum. So the mean over them is the gradient of the
whole loss, for parameters used within the loss and for states that enter it. Parameters are averaged by whom
they are divided by; `enter` averages the gradient of states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from v1lit.pointer.joint_loss.terms import PointerLoss


@dataclass(frozen=True)
class LossShare:
    """The ranks that share the positions of a batch, and which of them this one is."""

    group: dist.ProcessGroup
    own: int
    size: int

    def part(self, positions: int) -> slice:
        """This rank's of that many positions; it may be empty."""
        return slice(positions * self.own // self.size, positions * (self.own + 1) // self.size)

    def enter(self, states: Tensor) -> Tensor:
        """The states as they are, of whose gradient the mean over ranks is taken."""
        entered: Tensor = _Enter.apply(states, self)
        return entered

    def total(self, own: PointerLoss, labels: Tensor) -> PointerLoss:
        """The loss of all positions, of `labels`, from that of this rank's part; waits for the others."""
        mine = self.part(len(labels))
        each = own.loss.new_zeros(2 * len(own.values), len(labels))
        each[:, mine] = torch.stack([*own.values.values(), *own.weights.values()])
        numbers = torch.cat([own.loss.detach().reshape(1), each.flatten()])
        dist.all_reduce(numbers, group=self.group)
        predictions = torch.zeros_like(labels)
        predictions[mine] = own.predictions
        dist.all_reduce(predictions, group=self.group)
        loss, others = numbers[0], numbers[1:].view_as(each).unbind()
        return replace(
            own,
            loss=_Total.apply(own.loss, loss, self.size),
            values=dict(zip(own.values, others, strict=False)),
            weights=dict(zip(own.weights, others[len(own.values) :], strict=True)),
            predictions=predictions,
        )


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, share: LossShare) -> Tensor:
        ctx.share = share
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        mean = gradient / ctx.share.size
        dist.all_reduce(mean, group=ctx.share.group)
        return mean, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, total: Tensor, size: int) -> Tensor:
        ctx.size = size
        return total.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.size, None, None
