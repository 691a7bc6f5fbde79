"""FSDP2 on a `PointAndCopyModel`: a unit's parameters are divided over ranks, and gathered while it works."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from v1lit.parallel.units import Units
from v1lit.pointer.base import WITH_WEIGHT, PointAndCopyBase


def shard_model(model: PointAndCopyBase, mesh: DeviceMesh, compute: torch.dtype | None = None) -> None:
    """Divide a model's parameters over a mesh, in place: they become DTensors on the mesh's devices.

    A unit is gathered before it works and freed after it, but for the root and the head, which are needed
    again at once: these stay until the backward pass has used them. Gradients are averaged over the ranks in
    float32, however the units compute.

    Args:
        model: whose checkpointing and compilation are set up already; they stay inside of the units.
        mesh: one dimension to divide over, or two, the first of which has copies.
        compute: in which type units are gathered and compute; None for that of the parameters.
    """
    # Inputs stay as they are: a normalizer or rotary angles rounded to bfloat16 would be other numbers.
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    head = model.get_output_embeddings()
    for module in Units.of(model).modules.values():
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=module is not head)
    if isinstance(head, FSDPModule):
        setattr(head, WITH_WEIGHT, MethodType(_with_weight, head))
        register_fsdp_forward_method(head, WITH_WEIGHT)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    model.is_sharded = True


def _with_weight(head: nn.Linear, hidden: Tensor, run: Callable[[Tensor, Tensor], Any]) -> Any:
    return run(hidden, head.weight)
