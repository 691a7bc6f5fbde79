"""Where a model is cut, and which part a parameter belongs to."""

from __future__ import annotations

from v1lit.backbones.efficiency import part_layers
from v1lit.backbones.load import part_parameters
from v1lit.pointer.model import PointAndCopyModel

EMBEDDINGS, HEAD, REST = "embeddings", "head", "rest"
"""Units beside the layers: the tables of the vocabulary, and what is left."""
PARTS = ("vision", "projector", "language", "embeddings and head", "pointer")


def unit_of_parameters(model: PointAndCopyModel) -> dict[str, str]:
    """The unit of every parameter by name: a layer, the embeddings, an untied head, or the rest."""
    owner: dict[int, str] = {}
    for part in ("vision", "language"):
        for index, layer in enumerate(part_layers(model.backbone, model.family, part)):
            owner |= {id(p): f"{part} layer {index}" for p in layer.parameters()}
    owner[id(model.get_output_embeddings().weight)] = HEAD
    owner[id(model.get_input_embeddings().weight)] = EMBEDDINGS  # tied: of both
    return {name: owner.get(id(p), REST) for name, p in model.named_parameters()}


def part_of_parameters(model: PointAndCopyModel) -> dict[str, str]:
    """The part of `PARTS` that every parameter belongs to, by name."""
    parts = {
        id(p): part
        for part in model.family.parts
        for p in part_parameters(model.backbone, model.family, part).values()
    }
    parts |= {id(p): "pointer" for p in model.pointer_head.parameters()}
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        parts[id(table.weight)] = "embeddings and head"
    return {name: parts[id(p)] for name, p in model.named_parameters()}
