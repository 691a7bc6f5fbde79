"""Layers of a backbone that are recomputed instead of remembered, and layers that are compiled.

Both go through the one switch that every layer of transformers has: while it trains, a layer hands its
forward pass to a function of ours. So validation and generation stay as they are, no parameter is renamed,
and language and vision are set apart.

Source: transformers, modeling_layers.py, `GradientCheckpointingLayer`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from v1lit.backbones.config import LAYERED
from v1lit.backbones.contract import Backbone
from v1lit.errors import explain_unknown

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Forward = Callable[..., Any]


def enable_checkpointing(model: PreTrainedModel, backbone: Backbone, parts: Iterable[str]) -> int:
    """Activation checkpointing: keep only the input of every layer of `parts` ("language", "vision").

    In the backward pass each is computed a second time. Returns the number of layers. Raises ValueError for
    another part, or one whose layers cannot be recomputed.
    """
    layers = [layer for part in parts for layer in part_layers(model, backbone, part)]
    for layer in layers:
        _while_training(layer, _recomputed)
    return len(layers)


def compile_layers(model: PreTrainedModel, backbone: Backbone, parts: Iterable[str]) -> int:
    """`torch.compile` for every layer of `parts` ("language", "vision"). `enable_checkpointing` comes first.

    Layers of one class share one compiled graph, in which the number of tokens is free. Attention inside
    segments stays outside of it: lengths change with every batch. Returns the number of layers.

    Raises ValueError for another part, and where there is no C++ compiler.
    """
    layers = [layer for part in parts for layer in part_layers(model, backbone, part)]
    if layers:
        import torch._dynamo

        check_compiler()
        # Under DDP, torch.compile would split graphs by DDP's buckets, to send gradients early. Layers are
        # graphs of their own, between which gradients are sent anyway.
        torch._dynamo.config.optimize_ddp = False
    for layer in layers:
        recomputed = getattr(layer, "gradient_checkpointing", False)
        _while_training(layer, _recomputed_compiled if recomputed else _run_compiled)
    return len(layers)


def part_layers(model: PreTrainedModel, backbone: Backbone, part: str) -> list[nn.Module]:
    """The repeated layers of a part, in order. Raises ValueError for a part without any."""
    if part not in LAYERED:
        raise ValueError(explain_unknown("part with layers", part, LAYERED))
    layers = backbone.layers(model, part)
    if not layers:
        raise ValueError(
            f"{backbone.name} names no layers of its {part} part, so none can be recomputed, compiled or "
            f"divided over ranks; leave {part} out of model.backbone.gradient_checkpointing and "
            "model.backbone.compile, and use trainer.strategy=ddp"
        )
    return layers


def compiler_name() -> str:
    """The C++ compiler that torch.compile calls: `CXX` from the environment, or the platform's own."""
    return os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")


def check_compiler() -> None:
    """Raise ValueError where torch.compile has no C++ compiler, rather than at the first step."""
    name = compiler_name()
    if shutil.which(name) is None:
        raise ValueError(
            f"model.backbone.compile needs a C++ compiler, and {name} is not on the path; install one, name "
            "it in the environment variable CXX, or set model.backbone.compile=[]"
        )


def _while_training(layer: Any, run: Callable[..., Any]) -> None:
    # `run` gets the class's forward bound to layer and keyword arguments, and the positional arguments.
    layer.gradient_checkpointing = True
    layer._gradient_checkpointing_func = run


def _recomputed(forward: partial[Any], *args: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    # Not reentrant: a frozen tower whose inputs need no gradient is then simply not recomputed.
    return checkpoint(forward, *args, use_reentrant=False)


def _run_compiled(forward: partial[Any], *args: Any) -> Any:
    return _compiled_layer(forward)(*args)


def _recomputed_compiled(forward: partial[Any], *args: Any) -> Any:
    # The other way round, compilation would stop at the checkpoint.
    return _recomputed(_compiled_layer(forward), *args)


def _compiled_layer(forward: partial[Any]) -> partial[Any]:
    """The compiled function of the layer's class, with the layer and the keyword arguments."""
    function, bound = forward.func, forward.args
    layer = getattr(function, "__self__", None)
    if layer is not None:
        # transformers 5.17, for one, hands over a call bound to a layer: compiled as it is, each layer
        # would have one of its own and be kept by the cache. Hooks of the layer itself do not run then.
        function, bound = type(layer).forward, (layer, *bound)
    return partial(_compiled(function), *bound, **forward.keywords)


@cache
def _compiled(forward: Forward) -> Forward:
    """One compiled function per class of layers: weights are inputs of its graph."""
    import torch

    return torch.compile(forward, dynamic=True)
