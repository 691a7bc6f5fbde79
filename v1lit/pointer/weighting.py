"""How much every supervised position counts in the loss, and with which options the loss is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from v1lit.pointer.config import PointerConfig
from v1lit.pointer.joint_loss import LossOptions
from v1lit.pointer.layout import Targets


def position_weights(targets: Targets, options: PointerConfig) -> Tensor:
    """`[positions]`: float32 whatever the default type, which Lightning changes for half precision."""
    return 1.0 + (options.first_pointer_weight - 1.0) * targets.first.float()


def weight_sums(targets: Targets, options: PointerConfig, pointer_start: int) -> Tensor:
    """Sum of the weights, `[]`; for separate losses those of text and of pointers, `[2]`.

    With a loss of regions their number comes last: `[2]`, or `[3]`.
    """
    weights, is_pointer = position_weights(targets, options), targets.labels >= pointer_start
    sums = weights.sum()
    if options.loss == "separate":
        both = [weights.masked_fill(is_pointer, 0.0), weights.masked_fill(~is_pointer, 0.0)]
        sums = torch.stack(both).sum(1)
    if targets.regions is None:
        return sums
    return torch.cat([sums.reshape(-1), sums.new_full([1], len(targets.regions.rows))])


def loss_options(options: PointerConfig) -> LossOptions:
    """What the joint loss takes of a pointer's options."""
    return LossOptions(
        label_smoothing=options.label_smoothing,
        z_weight=options.z_weight,
        z_top_k=options.z_top_k,
        separate=options.loss == "separate",
        implementation=options.loss_implementation,
        chunk=options.loss_chunk,
    )
