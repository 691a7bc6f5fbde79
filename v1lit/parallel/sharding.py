"""FSDP2 on a `PointAndCopyModel`: a unit's parameters are divided over ranks, and gathered while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from v1lit.backbones.efficiency import part_layers
from v1lit.parallel.context_parallel import RowShare, refuse_sharing
from v1lit.parallel.tensor_parallel import split_layers
from v1lit.parallel.units import Units
from v1lit.pointer.base import WITH_WEIGHT
from v1lit.pointer.joint_loss import LossShare
from v1lit.pointer.model import PointAndCopyModel

COPIES, SHARDS, TENSOR, CONTEXT = "copies", "shards", "tensor", "context"
"""Dimensions of device meshes: `copies x shards x tensor`, or `copies x shards x context`."""
ALL_SHARDS = "all_shards"
"""The dimension that joins shards and what comes after them."""


@dataclass(frozen=True)
class Meshes:
    """Over which ranks the parts of a model are divided: of each mesh, one dimension, or copies before it."""

    language: DeviceMesh
    """For the language layers."""
    others: DeviceMesh
    """For everything else."""
    tensor: DeviceMesh | None = None
    """For the matrices of the language layers, before they are divided over `language`."""
    context: DeviceMesh | None = None
    """For the tokens of packed rows; no parameter is divided over it."""

    @classmethod
    def of(cls, ranks: DeviceMesh) -> Meshes:
        """Those of a mesh with the dimensions above, so that no rank of a copy holds what another has.

        But norms of language layers: ranks that differ in `tensor` alone hold the same part of them.
        """
        inner = TENSOR if TENSOR in (ranks.mesh_dim_names or ()) else CONTEXT
        one = ranks[COPIES].size() == 1
        some = ranks[SHARDS] if one else ranks[COPIES, SHARDS]
        if ranks[inner].size() == 1:
            return cls(some, some)
        joined = ranks[SHARDS, inner]._flatten(ALL_SHARDS)
        every = joined if one else ranks[COPIES, ALL_SHARDS]
        if inner == TENSOR:
            return cls(some, every, tensor=ranks[TENSOR])
        return cls(every, every, context=ranks[CONTEXT])


def shard_model(model: PointAndCopyModel, meshes: Meshes, compute: torch.dtype | None = None) -> None:
    """Divide a model's parameters over meshes, in place: they become DTensors on the meshes' devices.

    A unit is gathered before it works and freed after it, but for the root and the head, which are needed
    again at once: these stay until the backward pass has used them. Gradients are averaged over the ranks in
    float32, however the units compute.

    Args:
        model: whose checkpointing and compilation are set up already; they stay inside of the units.
        meshes: what to divide over which ranks.
        compute: in which type units are gathered and compute; None for that of the parameters.

    Raises IndivisibleError for a model whose language layers cannot be divided over `meshes.tensor`, or
    their attention over `meshes.context`.
    """
    if meshes.tensor is not None:
        split_layers(model, meshes.tensor)
        model.loss_share = LossShare(*_place(meshes.tensor))
    elif meshes.context is not None:
        refuse_sharing(model.config.get_text_config(), meshes.context.size())
        model.loss_share = LossShare(*_place(meshes.context))
        model.decode = RowShare(*_place(meshes.context)).decode
    language = set(part_layers(model.backbone, model.family, "language"))
    # Inputs stay as they are: a normalizer or rotary angles rounded to bfloat16 would be other numbers.
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    head = model.get_output_embeddings()
    for module in Units.of(model).modules.values():
        mesh = meshes.language if module in language else meshes.others
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=module is not head)
    if isinstance(head, FSDPModule):
        setattr(head, WITH_WEIGHT, MethodType(_with_weight, head))
        register_fsdp_forward_method(head, WITH_WEIGHT)
    fully_shard(model, mesh=meshes.others, mp_policy=policy, reshard_after_forward=False)
    model.is_sharded = True


def _place(ranks: DeviceMesh) -> tuple[ProcessGroup, int, int]:
    return ranks.get_group(), ranks.get_local_rank(), ranks.size()


def _with_weight(head: nn.Linear, hidden: Tensor, run: Callable[[Tensor, Tensor], Any]) -> Any:
    return run(hidden, head.weight)
