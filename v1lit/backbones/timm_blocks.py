"""A tower's blocks and norms, changed in place for training; results and state dict stay.

The classes of existing instances change, as in `v1lit.backbones.qwen_vision`.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

CONTAINERS = re.compile(r"(^|\.)(blocks|layer\d+)$")
"""How timm calls the lists of a tower's blocks."""


def prepare_tower(tower: nn.Module) -> None:
    """Let every block be recomputed, compiled and divided as one, and batch norms keep their statistics.

    What a batch norm has seen of other images must not change an image's features: like everybody who puts
    such a tower into a larger model, it learns scale and shift, and takes mean and variance as they are.
    """
    for module in tower.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            kind: Any = type(module)
            module.__class__ = _steady(kind)
            module.eval()
    for block in tower_blocks(tower):
        kind = type(block)
        block.__class__ = _recomputable(kind)


def tower_blocks(tower: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a tower in order; empty where nothing is called so."""
    found: list[nn.Module] = []
    inside = "\n"  # nothing begins so
    for path, module in tower.named_modules():
        named = CONTAINERS.search(path) and not path.startswith(inside)
        if named and isinstance(module, nn.Sequential | nn.ModuleList):
            inside = f"{path}."
            found += [block for child in module for block in _blocks_of(child)]
    return found


def _blocks_of(module: nn.Module) -> list[nn.Module]:
    """A block, or the blocks of a stage that is a plain list of them."""
    if type(module) is nn.Sequential:
        return [block for child in module for block in _blocks_of(child)]
    return [module] if any(True for _ in module.parameters()) else []


@cache
def _recomputable(kind: Any) -> Any:
    """The class as one of transformers' layers that can be recomputed."""
    if issubclass(kind, GradientCheckpointingLayer):
        return kind
    return type(kind.__name__, (GradientCheckpointingLayer, kind), {"__module__": kind.__module__})


@cache
def _steady(kind: Any) -> Any:
    """The class of batch norms, whose statistics stay also while the model trains."""

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        return nn.Module.train(self, False)

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "train": train})
