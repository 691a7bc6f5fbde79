"""The norm of gradients and clipping by it, for parameters on any mixture of device meshes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """`[]`: the Euclidean norm of all gradients together, the same on every rank; waits for the ranks.

    torch's own works on one mesh at a time, and a model may lie on several.
    """
    norms = [_whole(torch.nn.utils.get_total_norm(group)) for group in _by_mesh(gradients)]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros([])


def clip_by_norm(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their norm is at most `limit`, in place. Returns the norm before, `[]`."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = total_norm(gradients)
    # The factor of torch.nn.utils.clip_grads_with_norm_, to the last bit.
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        local.mul_(factor.to(local.device))
    return norm


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _by_mesh(gradients: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        groups.setdefault(gradient.device_mesh if isinstance(gradient, DTensor) else None, []).append(
            gradient
        )
    return list(groups.values())
