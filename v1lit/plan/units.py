"""What parameters belong to: a unit, which is gathered as a whole, and a part, which people know."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from v1lit.backbones.adapters.config import QLORA
from v1lit.backbones.adapters.layers import linear_layers
from v1lit.backbones.load import part_parameters
from v1lit.parallel.units import Units
from v1lit.pointer.model import PointAndCopyModel

REST, HEAD, EMBEDDINGS = "the rest", "loss", "embeddings"
"""Units beside the layers: what no other owns, and the tables of the vocabulary where they are not tied."""
PARTS = ("vision", "projector", "language", "embeddings and head", "pointer")


class Size(NamedTuple):
    """Numbers in parameters."""

    all: int
    learned: int
    packed: int = 0
    """Of all, those that are kept in 4 bits."""

    def __add__(self, other: object) -> Size:
        assert isinstance(other, Size)
        return Size(*(one + more for one, more in zip(self, other, strict=True)))


NOTHING = Size(0, 0)


def unit_names(model: PointAndCopyModel) -> dict[str, str]:
    """What the units of `v1lit.parallel.units` are called here, by their paths: layers by part and number."""
    names = {"": REST}
    tables = {model.get_input_embeddings(): EMBEDDINGS, model.get_output_embeddings(): HEAD}
    vision = model.family.parts["vision"]
    counts = {"vision": 0, "language": 0}
    for path, module in Units.of(model).modules.items():
        part = "vision" if path.removeprefix("backbone.").startswith(vision) else "language"
        if module in tables:
            names[path] = tables[module]
        else:
            names[path] = f"{part} layer {counts[part]}"
            counts[part] += 1
    return names


def unit_of_parameters(model: PointAndCopyModel) -> dict[str, str]:
    """The unit of every parameter, by name."""
    names = unit_names(model)
    return {parameter: names[unit] for parameter, unit in Units.of(model).owners.items()}


def unit_sizes(model: PointAndCopyModel) -> dict[str, Size]:
    """The size of every unit."""
    return _sizes(model, unit_of_parameters(model))


def part_sizes(model: PointAndCopyModel) -> dict[str, Size]:
    """The size of every part of `PARTS`."""
    parts = {
        id(p): part
        for part in model.family.parts
        for p in part_parameters(model.backbone, model.family, part).values()
    }
    parts |= {id(p): "pointer" for p in model.pointer_head.parameters()}
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        parts[id(table.weight)] = "embeddings and head"
    sizes = _sizes(model, {name: parts[id(p)] for name, p in model.named_parameters()})
    return {part: sizes.get(part, NOTHING) for part in PARTS}


def packed_weights(model: PointAndCopyModel) -> list[nn.Parameter]:
    """The weights that a run would keep in 4 bits."""
    if model.adapter.kind != QLORA:
        return []
    paths = [
        path for part in model.adapter.parts for path in linear_layers(model.backbone, model.family, part)
    ]
    weights = [model.backbone.get_parameter(f"{path}.weight") for path in paths]
    return [weight for weight in weights if not weight.requires_grad]  # adapters are linear layers, too


def _sizes(model: PointAndCopyModel, owners: dict[str, str]) -> dict[str, Size]:
    sizes: dict[str, Size] = {}
    packed = {id(parameter) for parameter in packed_weights(model)}
    for name, parameter in model.named_parameters():
        count = parameter.numel()
        size = Size(count, count * parameter.requires_grad, count * (id(parameter) in packed))
        sizes[owners[name]] = sizes.get(owners[name], NOTHING) + size
    return sizes
