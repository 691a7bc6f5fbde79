"""The joint loss in plain torch, all logits at once: the specification of the other implementations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from v1lit.pointer.joint_loss.terms import JointRows, LossOptions, Pointers, Terms, wide


def reference_terms(rows: JointRows, options: LossOptions, reduce: bool) -> Terms:
    """The terms of `rows`, with autograd's gradients.

    Source: jun297/v1, v1/modeling_v1.py, lines 476-510; the smoothing is that of arXiv 1512.00567, section 7,
    the z-loss that of arXiv 2204.02311, section 5.
    """
    text = F.linear(rows.hidden, rows.head.to(rows.hidden.dtype))
    logits = joint_logits(text, _pointer_logits(rows.pointers, text), rows.gate, rows.vocabulary)
    allowed = logits > torch.finfo(logits.dtype).min
    losses = -logits.log_softmax(dim=-1)
    target = losses.gather(-1, rows.labels[:, None])[:, 0]
    even = losses.masked_fill(~allowed, 0.0).sum(dim=-1) / allowed.sum(dim=-1).clamp(min=1)
    cross_entropy = (1 - options.label_smoothing) * target + options.label_smoothing * even
    k = options.z_top_k
    top = logits if k is None else logits.topk(min(k, logits.shape[-1])).values
    z = top.logsumexp(dim=-1).square()
    weighted = rows.weights * options.combine(cross_entropy, z)
    value = weighted.sum() if reduce else weighted
    return Terms(value, cross_entropy.detach(), z.detach(), logits.argmax(dim=-1))


def joint_logits(vocabulary: Tensor, pointers: Tensor, gate: Tensor | None, pointer_start: int) -> Tensor:
    """`[vocabulary logits[:V] ; pointer logits]` in float32, each side scaled by the gate, if any.

    Absent pointers hold the lowest float, before and after.
    Source: jun297/v1, v1/modeling_v1.py, lines 367-378.
    """
    text = vocabulary[..., :pointer_start].to(pointers)
    if gate is None:
        return torch.cat([text, pointers], dim=-1)
    gate = gate.to(pointers.device)
    lowest = torch.finfo(pointers.dtype).min
    gated = (gate * pointers).masked_fill(pointers <= lowest, lowest)
    return torch.cat([(1 - gate) * text, gated], dim=-1)


def _pointer_logits(pointers: Pointers | None, text: Tensor) -> Tensor:
    """`[positions, pointers]`: logits of the pointers, the lowest float where a sequence has fewer."""
    dtype = wide(text.dtype)
    if pointers is None:
        return text.new_zeros(len(text), 0, dtype=dtype)
    queries = pointers.queries.to(text.dtype).split(pointers.positions)
    keys = pointers.keys.to(text.dtype).split(pointers.image_tokens)
    lowest = torch.finfo(dtype).min
    parts = [
        F.pad((q @ k.T).to(dtype) * pointers.scale, (0, pointers.longest - len(k)), value=lowest)
        for q, k in zip(queries, keys, strict=True)
    ]
    return torch.cat(parts) if parts else text.new_zeros(len(text), 0, dtype=dtype)
