"""Digits that tell the weights of one backbone from those of another, however files and types hold them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.empty import on_meta
from v1lit.backbones.hub import hub_errors, local_folder
from v1lit.backbones.load import checkpoint_config, fit_weights, load_backbone
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.weight_reading import Slices, WeightFiles

if TYPE_CHECKING:
    from torch import Tensor

Read = Callable[[str, Slices], "Tensor"]
LOOKED_AT = 64
"""Numbers of a row of a weight that are looked at, in its first, middle and last row."""


def fingerprint(backbone: BackboneConfig, seed: int) -> str:
    """Of a backbone's weights: names, shapes, and some numbers of each, rounded to bfloat16.

    So the same weights in other files, or in float32 where they were in bfloat16, have the same. Reads no
    weight whole. Raises what `load_backbone` raises.

    Args:
        backbone: which; a tiny version is drawn anew.
        seed: of a tiny version.
    """
    import torch

    if backbone.weights == "tiny":
        plain = BackboneConfig(backbone.name, tiny=backbone.tiny)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = load_backbone(plain).state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        return _digits(shapes, lambda name, part: state[name][part or ...])
    with hub_errors(backbone.weights):
        return _of_files(backbone)


def _of_files(backbone: BackboneConfig) -> str:
    from v1lit.backbones.classes import named_class

    family = get_backbone(backbone.name)
    files = WeightFiles(local_folder(backbone.weights))
    model_class = named_class(family.model_class)
    model = on_meta(model_class, checkpoint_config(family, backbone.weights))
    names = fit_weights(model, files, backbone.weights)
    stored = dict(names.renamed)
    for one, other in names.doubled:  # a tied table that the files have twice counts once
        stored.pop(max(one, other), None)
    for conversion in names.conversions:
        stored |= {name: name for _, name in conversion.sources}
    shapes = {name: files.tensors[source].shape for name, source in stored.items()}
    return _digits(shapes, lambda name, part: files.read(stored[name], part))


def _digits(shapes: Mapping[str, tuple[int, ...]], read: Read) -> str:
    import torch

    digest = hashlib.sha256()
    for name in sorted(shapes):
        shape = shapes[name]
        digest.update(f"{name} {list(shape)}\n".encode())
        rows = sorted({0, shape[0] // 2, shape[0] - 1}) if shape and 0 not in shape else []
        parts: list[Slices] = [(slice(row, row + 1),) for row in rows] or [()]
        for part in parts:
            numbers = read(name, part).flatten()[:LOOKED_AT].to(torch.bfloat16).contiguous()
            digest.update(numbers.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
