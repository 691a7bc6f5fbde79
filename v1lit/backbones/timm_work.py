"""How many operations tower and projector take for images, counted on `meta` once for each size."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from v1lit.backbones.timm_model import by_cells
from v1lit.backbones.timm_projectors import ProjectorSpec, make_projector
from v1lit.backbones.timm_tower import Tower, create_tower, run_tower
from v1lit.backbones.work import VisionWork


class Operations(NamedTuple):
    """Of one image, in the forward and in the backward pass."""

    tower: int
    tower_backward: int
    projector: int
    projector_backward: int


def images_work(config: Any, image_inputs: Mapping[str, Tensor]) -> VisionWork:
    """What the images of a batch cost; their pixels may be on `meta`."""
    if not image_inputs:
        return VisionWork()
    facts, spec = config.tower_facts, config.projector_spec
    pixels = image_inputs["pixel_values"]
    if facts.naflex:
        # Of the shape of an image only its number of patches counts.
        patches = [rows * columns for rows, columns in image_inputs["image_grid_hw"].tolist()]
        sizes = [(facts.patch_size * spec.scale, n // spec.scale * facts.patch_size) for n in patches]
    else:
        sizes = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    work = [operations(config.tower_spec, spec, facts.norm, size) for size in sizes]
    tokens = [image_tokens(config, size) for size in sizes]
    total = Operations(*map(sum, zip(*work, strict=True)))
    return VisionWork(image_tokens=sum(tokens), **total._asdict())


def image_tokens(config: Any, size: tuple[int, int]) -> int:
    """Image tokens of an image of this height and width."""
    from v1lit.backbones.timm_sizes import canvas_grid

    facts, spec = config.tower_facts, config.projector_spec
    rows, columns = canvas_grid((size[1], size[0]), facts.patch_size, facts.rounding)
    return int(spec.tokens) if spec.kind == "resampler" else rows * columns // spec.scale**2


@cache
def operations(tower: Tower, projector: ProjectorSpec, norm: bool, size: tuple[int, int]) -> Operations:
    """Operations for one image of this height and width, as torch counts matrix products and convolutions."""
    with torch.device("meta"):
        made, head = create_tower(tower), make_projector(projector)
        image = torch.empty(1, 3, *size)
    # As matrix products, which every version of torch counts: not every one knows the CPU's fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        maps = run_tower(made, image, tower.layers, norm)
        seen = [counter.get_total_flops()]
        features = by_cells(maps, projector.scale).flatten(0, 1).detach().requires_grad_()
        tokens = head(features, [len(features)])
        seen.append(counter.get_total_flops())
        tokens.sum().backward()
        seen.append(counter.get_total_flops())
        maps.sum().backward()
        seen.append(counter.get_total_flops())
    forward, both, through, whole = seen
    return Operations(forward, whole - through, both - forward, through - both)
