"""A rectangle painted into a blank image changes exactly the tokens that the patch map names.

Resizing spreads an edge by the reach of its filter (bicubic: 2 pixels of the coarser side). The rectangles'
edges keep that distance from every token's border, so that "exactly" can be asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from v1lit.backbones import get_backbone
from v1lit.backbones.contract import Backbone
from v1lit.backbones.image_options import ImageProcessor
from v1lit.grounding.patch_map import PatchMap
from v1lit.testing import assert_patch_map
from v1lit.testing.patch_maps import painted

pytestmark = pytest.mark.dependencies

RECTANGLES = 6
REACH = 2.6
CELL = {
    **{"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32, "qwen3_5": 32, "llava": 14, "internvl": 28},
    "gemma3": 56,
}
Box = tuple[int, int, int, int]

CASES: list[tuple[str, tuple[int, int], dict[str, Any]]] = [
    ("qwen2_5_vl", (640, 480), {"max_pixels": 448 * 448}),
    ("qwen2_5_vl", (150, 130), {"min_pixels": 300 * 300}),
    ("qwen2_5_vl", (333, 900), {"max_side": 672}),
    ("qwen2_vl", (517, 301), {}),
    ("qwen3_vl", (640, 480), {}),
    ("qwen3_vl", (210, 170), {}),
    ("qwen3_vl", (333, 900), {"max_side": 768}),
    ("qwen3_5", (333, 900), {"max_side": 768}),
    ("llava", (640, 480), {}),
    ("llava", (300, 711), {}),
    ("llava", (200, 180), {}),
    ("llava", (640, 480), {"do_pad": True}),
    ("llava", (301, 710), {"do_pad": True}),
    ("llava", (500, 300), {"size": {"height": 336, "width": 336}, "do_center_crop": False}),
    ("llava", (500, 300), {"size": 224}),
    ("llava", (900, 700), {"max_side": 450}),
    ("internvl", (640, 480), {"max_patches": 4}),
    ("internvl", (300, 610), {}),
    ("internvl", (500, 490), {"max_patches": 1}),
    ("internvl", (700, 400), {"crop_to_patches": False}),
    ("internvl", (1200, 420), {"max_side": 900, "max_patches": 3}),
    ("gemma3", (640, 480), {}),
    ("gemma3", (900, 500), {"do_pan_and_scan": True}),
    ("gemma3", (310, 1101), {"do_pan_and_scan": True}),
    ("gemma3", (1500, 700), {"max_side": 900, "do_pan_and_scan": True}),
]


def free_edges(
    lower: np.ndarray, upper: np.ndarray, views: np.ndarray, cell: int, length: int, extra: float
) -> list[int]:
    """Whole pixels that keep the filter's distance from every border of every view; the image's ends too."""
    pixels = np.arange(1, length)
    free = np.ones(len(pixels), dtype=bool)
    for view in np.unique(views[views >= 0]):
        of_view = views == view
        borders = np.unique(np.concatenate([lower[of_view], upper[of_view]]))
        borders = borders[(borders > 1e-6) & (borders < length - 1e-6)]
        scale = (upper[of_view] - lower[of_view]).max() / cell
        reach = REACH * max(1.0, scale) + extra
        free &= (np.abs(pixels[:, None] - borders[None]) >= reach).all(1)
    return [0, *pixels[free].tolist(), length]


def rectangles(patch_map: PatchMap, cell: int, max_side: int | None) -> list[Box]:
    width, height = patch_map.image_size
    x1, y1, x2, y2 = patch_map.boxes.T
    extra = REACH * max(1.0, max(width, height) / max_side) if max_side else 0.0
    xs = free_edges(x1, x2, patch_map.token_views, cell, width, extra)
    ys = free_edges(y1, y2, patch_map.token_views, cell, height, extra)
    rng = np.random.default_rng(0)
    found: list[Box] = []
    while len(found) < RECTANGLES:
        left, right = sorted(rng.choice(xs, 2, replace=False).tolist())
        top, bottom = sorted(rng.choice(ys, 2, replace=False).tolist())
        # A sliver may vanish in the rounding to whole brightness levels.
        if right - left > width / 20 and bottom - top > height / 20:
            found.append((left, top, right, bottom))
    return found


def cells(pixel_values: torch.Tensor, cell: int) -> torch.Tensor:
    """The vision tower's input as one row per image token, in the order of the tokens."""
    if pixel_values.ndim == 2:
        return pixel_values.unflatten(0, (-1, 4)).flatten(1)
    rows = pixel_values.unfold(2, cell, cell).unfold(3, cell, cell)
    return rows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)


def changed(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    return (before != after).any(1).nonzero().flatten().tolist()


def pixels_of(backbone: Backbone, processor: ImageProcessor, image: Image.Image) -> torch.Tensor:
    tensors, maps = backbone.preprocess([image], processor)
    found = cells(tensors["pixel_values"], CELL[backbone.name])
    assert len(found) == len(maps[0])
    assert maps[0] == backbone.patch_map(image.size, **processor.options, max_side=processor.max_side)
    return found


def transposed(name: str, patch_map: PatchMap) -> PatchMap:
    """The same tokens in column order, view by view: what a mix-up of rows and columns would give."""
    if name == "llava":
        order = np.arange(len(patch_map)).reshape(2 * [round(len(patch_map) ** 0.5)]).T.ravel()
    else:
        order = np.lexsort((patch_map.boxes[:, 1], patch_map.boxes[:, 0], patch_map.token_views))
    return PatchMap(
        patch_map.image_size, patch_map.boxes[order], patch_map.token_views[order], patch_map.views
    )


@pytest.mark.parametrize(("name", "size", "options"), CASES)
def test_exactly_the_named_tokens_change_at_the_towers_input(
    name: str, size: tuple[int, int], options: dict[str, Any]
) -> None:
    backbone = get_backbone(name)
    processor = backbone.image_processor(**options)
    patch_map = backbone.patch_map(size, **options)
    blank = pixels_of(backbone, processor, painted(size, None))
    hits = wrong_hits = 0
    for box in rectangles(patch_map, CELL[name], options.get("max_side")):
        found = changed(blank, pixels_of(backbone, processor, painted(size, box)))
        assert found == patch_map.tokens(box), f"rectangle {box}"
        hits += 1
        wrong_hits += found == transposed(name, patch_map).tokens(box)
    assert hits == RECTANGLES
    assert wrong_hits <= 2, "the control matched too: this test could not see rows and columns swapped"


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("llava", (200, 150), {"do_pad": True}),
        ("internvl", (300, 200), {"crop_to_patches": False}),
        ("internvl", (120, 420), {"max_patches": 3}),
        ("gemma3", (250, 601), {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 100}),
    ],
)
def test_exactly_the_named_tokens_change_before_the_decoder(
    name: str, size: tuple[int, int], options: dict[str, Any]
) -> None:
    assert assert_patch_map(name, size, **options) == RECTANGLES
