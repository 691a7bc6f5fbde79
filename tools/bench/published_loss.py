"""The published way to compute the loss from last hidden states, as a baseline for `loss.py`.

Written from the formulas of arXiv 2505.18842, plainly: logits of every token, supervised or not, vocabulary
and pointers side by side, in float32; all but the last of every row copied; cross-entropy that ignores some.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100


def published_loss(
    hidden: Tensor,
    head: Tensor,
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    pointer_start: int,
    z_weight: float = 1e-5,
    z_top_k: int = 40,
) -> Tensor:
    """The loss, `[]`; every row has all of its keys.

    hidden, queries `[batch, tokens, width]`; keys `[batch, image_tokens, width]`; labels `[batch, tokens]`,
    not shifted.
    """
    vocabulary = F.linear(hidden, head)
    pointers = queries @ keys.transpose(1, 2) * hidden.shape[-1] ** -0.5
    logits = torch.cat([vocabulary[..., :pointer_start], pointers], dim=-1).float()
    return joint_loss(logits, labels, z_weight, z_top_k)


def joint_loss(logits: Tensor, labels: Tensor, z_weight: float, z_top_k: int) -> Tensor:
    """Cross-entropy over all positions but those to be ignored, plus `z_weight` mean(logsumexp^2)."""
    shifted = logits[:, :-1].contiguous().flatten(0, 1)
    targets = labels[:, 1:].contiguous().flatten()
    cross_entropy = F.cross_entropy(shifted, targets, ignore_index=IGNORE)
    top = shifted.topk(min(z_top_k, shifted.shape[-1]), dim=-1).values
    return cross_entropy + z_weight * top.logsumexp(dim=-1)[targets != IGNORE].square().mean()
