"""Models with adapters that have learned something, for tests."""

from __future__ import annotations

from typing import Any

import torch

from v1lit.backbones.adapters.config import AdapterConfig
from v1lit.backbones.config import BackboneConfig
from v1lit.pointer.adapted import kept_names
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel

EVERYWHERE = ["language", "projector", "vision"]


def adapted(
    family: str,
    adapter: AdapterConfig,
    pointer: PointerConfig | None = None,
    seed: int = 0,
    learned: bool = True,
    **backbone: Any,
) -> PointAndCopyModel:
    """A tiny model, or one on other weights, whose adapters and heads have moved as far as training would."""
    torch.manual_seed(seed)
    model = PointAndCopyModel.build(BackboneConfig(family, **backbone), pointer, adapter=adapter)
    if learned:
        learn(model)
    return model.eval()


def learn(model: PointAndCopyModel) -> None:
    """Move all that is trained."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name in kept_names(model):
            parameter = model.get_parameter(name)
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.05)
