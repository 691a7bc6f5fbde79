"""Tensor parallelism of the language layers: their matrices are multiplied in parts, on ranks of one node.

What is written of a layer is torch's own: every matrix becomes a DTensor, divided by columns where its input
is whole and by rows where its input is divided, so that attention and MLP add up their parts once each, in
either pass. Source: arXiv 1909.08053, section 3; torch, distributed/tensor/parallel/style.py.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from transformers import PreTrainedConfig

from v1lit.backbones.efficiency import part_layers
from v1lit.errors import first_of
from v1lit.pointer.base import PointAndCopyBase

COLUMNS, ROWS = "colwise", "rowwise"
"""How transformers calls the two ways in a config's `base_model_tp_plan`."""
OF_HEADS = "replicated_with_grad_allreduce"
"""How it calls norms of single heads: whole on every rank, which has other heads and so other gradients."""
STYLES: dict[str, type[ParallelStyle]] = {COLUMNS: ColwiseParallel, ROWS: RowwiseParallel}
DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
"""Numbers of a text config of which every rank takes its share."""


class IndivisibleError(ValueError):
    """A model whose language layers cannot be divided over that many ranks."""


def split_layers(model: PointAndCopyBase, mesh: DeviceMesh) -> None:
    """Divide the matrices and biases of the language layers over a mesh of one dimension, in place.

    Norms stay whole; gradients of norms of single heads are added up. The ranks of the mesh must compute the
    same batches. Raises IndivisibleError for a model that cannot be divided so.
    """
    config = model.config.get_text_config()
    refuse_uneven(config, mesh.size())
    decoder = model.backbone.get_decoder()
    names = {module: name for name, module in decoder.named_modules()}
    for layer in part_layers(model.backbone, model.family, "language"):
        plan = layer_plan(layer, names[layer], config)
        styles: dict[str, ParallelStyle] = {name: STYLES[way]() for name, way in plan.items()}
        for name in norms_of_heads(layer, names[layer], config):  # `[batch, tokens, heads, head dim]`
            styles[name] = SequenceParallel(sequence_dim=2, use_local_output=True)
        parallelize_module(layer, mesh, styles)
        for parent in {name.rpartition(".")[0] for name, way in plan.items() if way == COLUMNS}:
            # Once for all matrices that take this input: its gradient is then added up once, too.
            hook = partial(_input_on_all, mesh)
            layer.get_submodule(parent).register_forward_pre_hook(hook, with_kwargs=True)


def refuse_uneven(config: PreTrainedConfig, ranks: int) -> None:
    """Raise IndivisibleError where heads or columns of a text config do not divide over that many ranks."""
    for name in DIVIDED:
        if (number := getattr(config, name)) % ranks:
            raise IndivisibleError(
                f"{name}={number} of the language model cannot be divided over {ranks} ranks\n"
                "give a number that divides it, or 1"
            )


def layer_plan(layer: nn.Module, path: str, config: PreTrainedConfig) -> dict[str, str]:
    """`colwise` or `rowwise` by the names of all matrices in a layer, as transformers states for the family.

    Args:
        layer: of the language part.
        path: its name in the decoder.
        config: of the text model.

    Raises IndivisibleError for a matrix of which transformers says nothing, or something else.
    """
    plan, missing = {}, []
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            way = _stated(config, f"{path}.{name}")
            if way in STYLES:
                plan[name] = way
            else:
                missing.append(name)
    if missing or not plan:
        raise IndivisibleError(
            f"transformers does not say how {first_of(missing) if missing else path} of {config.model_type} "
            "may be divided over ranks by columns or rows\n"
            "give 1: this family cannot be trained with tensor parallelism; fsdp2 and hsdp divide its weights"
        )
    return plan


def norms_of_heads(layer: nn.Module, path: str, config: PreTrainedConfig) -> list[str]:
    """Names of the norms in a layer that see the heads of one rank, as transformers states for the family."""
    return [name for name, _ in layer.named_modules() if _stated(config, f"{path}.{name}") == OF_HEADS]


def _stated(config: PreTrainedConfig, module: str) -> str | None:
    """What transformers says of a module of the decoder, by its name."""
    stated: dict[str, str] = getattr(config, "base_model_tp_plan", None) or {}
    return next((way for pattern, way in stated.items() if fnmatchcase(module, pattern)), None)


def _input_on_all(mesh: DeviceMesh, _: nn.Module, args: Any, kwargs: Any) -> Any:
    if args:
        return (_on_all(mesh, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": _on_all(mesh, kwargs["hidden_states"])}


def _on_all(mesh: DeviceMesh, states: Tensor) -> Tensor:
    return DTensor.from_local(states, mesh, [Replicate()], run_check=False)
