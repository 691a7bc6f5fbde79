"""Where a model is cut: every unit is gathered and freed as a whole, and owns its parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from v1lit.backbones.config import LAYERED
from v1lit.backbones.efficiency import part_layers
from v1lit.pointer.base import PointAndCopyBase

ROOT = ""
"""Name of the unit that owns what no other does: the whole model."""


@dataclass(frozen=True)
class Units:
    """The units of one model, in the order in which a forward pass needs them."""

    modules: dict[str, nn.Module]
    """By their names in the model: input embeddings, vision blocks, language layers and the head.

    Embeddings that are tied to the head are none, since both need the one weight: they stay with the root."""
    owners: dict[str, str]
    """Parameter -> name of its unit; `ROOT` for the projector, the last norms and the pointer head."""

    @classmethod
    def of(cls, model: PointAndCopyBase) -> Units:
        """The units of a model. Raises ValueError for a family that states no layers of a part."""
        names = {module: name for name, module in model.named_modules()}
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = head.weight is embeddings.weight
        layers = {part: part_layers(model.backbone, model.family, part) for part in LAYERED}
        order = [*layers["vision"], *layers["language"]]
        chosen: list[nn.Module] = order if tied else [embeddings, *order, head]
        modules = {names[module]: module for module in chosen}
        return cls(modules, {name: _owner(name, modules) for name, _ in model.named_parameters()})


def _owner(parameter: str, modules: dict[str, nn.Module]) -> str:
    path = parameter
    while path:
        path = path.rpartition(".")[0]
        if path in modules:
            return path
    return ROOT
