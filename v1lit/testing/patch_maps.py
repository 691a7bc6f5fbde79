"""A rectangle painted into a blank image changes exactly the tokens that the patch map names.

Attention in the tower is zero meanwhile, so every feature is computed from its token's own pixels.
Resizing spreads an edge by the reach of its filter, so rectangles' edges keep away from borders of tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.contract import Backbone
from v1lit.backbones.load import load_backbone
from v1lit.backbones.registry import get_backbone
from v1lit.grounding.patch_map import PatchMap
from v1lit.grounding.region import Size

RECTANGLES = 6
REACH = 2.6
"""Pixels of the coarser side by which bicubic resizing spreads an edge."""
SHARE = 0.3
"""Least distance of an edge from a token's border, in sides of the token; enough for 9 pixels a token."""
BLIND = "v1lit_testing_blind"
"""Name of the attention that returns zeros."""
Rectangle = tuple[int, int, int, int]


def assert_patch_map(name: str, size: Size, sizes: dict[str, Any] | None = None, /, **options: Any) -> int:
    """The number of painted rectangles that changed exactly their tokens, in an image of this size.

    `sizes` are those of the tiny version, `options` image options. Raises AssertionError for the first
    rectangle that changed others.
    """
    torch.manual_seed(0)
    backbone, model = get_backbone(name), load_backbone(BackboneConfig(name, tiny=sizes or {}, image=options))
    image_processor = backbone.image_processor("tiny", sizes, **options)
    make_blind(model, backbone)

    def features_of(box: Rectangle | None) -> tuple[Tensor, PatchMap]:
        tensors, maps = backbone.preprocess([painted(size, box)], image_processor)
        return backbone.encode_images(model, **tensors), maps[0]

    with torch.no_grad():
        blank, patch_map = features_of(None)
        assert len(blank) == len(patch_map), (
            f"an image of {size[0]}x{size[1]} has {len(blank)} features and a map of {len(patch_map)} tokens"
        )
        drawn = rectangles(patch_map)
        for box in drawn:
            found = (blank != features_of(box)[0]).any(1).nonzero().flatten().tolist()
            named = patch_map.tokens(box)
            assert found == named, (
                f"in an image of {size[0]}x{size[1]} the rectangle {box} changes the tokens {_some(found)}, "
                f"but the patch map names {_some(named)}"
            )
    return len(drawn)


def make_blind(model: PreTrainedModel, backbone: Backbone) -> None:
    """Keep tokens of the vision tower from seeing each other.

    Its attention must ask `AttentionInterface`, or be in modules called `attn`. Convolutions and pools that
    overlap are cut to the pixels that each of their outputs stands for.
    """
    AttentionInterface.register(BLIND, _blind)
    for path in backbone.parts["vision"]:
        for name, module in model.get_submodule(path).named_modules():
            if (config := getattr(module, "config", None)) is not None:
                config._attn_implementation = BLIND
            elif name.rpartition(".")[2] == "attn":
                module.register_forward_hook(_zeros)
            elif isinstance(module, nn.Conv2d):
                _cut_kernel(module)
            elif isinstance(module, nn.MaxPool2d):
                module.kernel_size, module.padding, module.ceil_mode = module.stride, 0, True


def _blind(module: Any, query: Tensor, *args: Any, **options: Any) -> tuple[Tensor, None]:
    """Zeros `[batch, tokens, heads, head dim]` for a query of `[batch, heads, tokens, head dim]`."""
    return torch.zeros_like(query).transpose(1, 2).contiguous(), None


def _zeros(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return torch.zeros_like(output)


def _cut_kernel(module: nn.Conv2d) -> None:
    """Leave of a kernel what lies between its padding and one stride further; of most kernels that is all."""
    weight = module.weight.detach().clone()
    paddings: Any = (0, 0) if module.padding == "valid" else module.padding
    for axis, (padding, stride) in enumerate(zip(paddings, module.stride, strict=True), 2):
        places = torch.arange(weight.shape[axis])
        inside = (places >= padding) & (places < padding + stride)
        weight = weight * inside.view([-1 if own == axis else 1 for own in range(4)])
    module.weight.data.copy_(weight)


def rectangles(patch_map: PatchMap) -> list[Rectangle]:
    """Rectangles whose edges keep away from the borders of every view's tokens."""
    width, height = patch_map.image_size
    x1, y1, x2, y2 = patch_map.boxes.T
    xs = free_edges(x1, x2, patch_map.token_views, width)
    ys = free_edges(y1, y2, patch_map.token_views, height)
    rng = np.random.default_rng(0)
    found: list[Rectangle] = []
    for _ in range(10_000):
        left, right = sorted(rng.choice(xs, 2, replace=False).tolist())
        top, bottom = sorted(rng.choice(ys, 2, replace=False).tolist())
        # A sliver may vanish in the rounding to whole brightness levels.
        if right - left > width / 20 and bottom - top > height / 20:
            found.append((left, top, right, bottom))
        if len(found) == RECTANGLES:
            return found
    raise AssertionError(f"the tokens of an image of {width}x{height} are too small to tell them apart")


def free_edges(lower: np.ndarray, upper: np.ndarray, token_views: np.ndarray, length: int) -> list[int]:
    """Whole pixels that keep the filter's distance from every border of every view; the image's ends too."""
    pixels = np.arange(1, length)
    free = np.ones(len(pixels), dtype=bool)
    for view in np.unique(token_views[token_views >= 0]):
        in_view = token_views == view
        borders = np.unique(np.concatenate([lower[in_view], upper[in_view]]))
        borders = borders[(borders > 1e-6) & (borders < length - 1e-6)]
        # Of a token's side the distance of borders tells, also where tokens see parts of others.
        reach = max(REACH, SHARE * np.diff([0, *borders, length]).max())
        free &= (np.abs(pixels[:, None] - borders[None]) >= reach).all(1)
    return [0, *pixels[free].tolist(), length]


def painted(size: Size, box: Rectangle | None) -> Image.Image:
    """A grey image, with a brighter rectangle if there is one."""
    image = Image.new("RGB", size, (60, 60, 60))
    if box is not None:
        image.paste((220, 220, 220), box)
    return image


def _some(tokens: list[int]) -> str:
    return str(tokens) if len(tokens) <= 12 else f"{tokens[:12]} and {len(tokens) - 12} more"
