"""The image processor of models made of parts, in the form of transformers: settings, files, and a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import pil_torch_interpolation_mapping

from v1lit.backbones.timm_model import by_cells
from v1lit.backbones.timm_sizes import canvas_grid, drawn_size, kept_grid

Fit = Literal["squash", "pad", "keep"]


class TimmImageSettings(TypedDict, total=False):
    """The settings that a file may have."""

    do_resize: bool
    size: dict[str, int]
    fit: Fit
    max_tokens: int
    patch_size: int
    rounding: str
    merge: int
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: list[float]
    image_std: list[float]


class TimmImageProcessor(ImageProcessingMixin):
    """Images as a tower of timm takes them: all of the image, resized, in the tower's mean and deviation.

    timm's own preprocessing cuts the middle out as well (`crop_pct`); here no pixel is left out.
    """

    model_input_names = ["pixel_values", "image_grid_hw"]  # noqa: RUF012  transformers reads a class attribute
    valid_kwargs = TimmImageSettings

    def __init__(self, **settings: Any) -> None:
        own: dict[str, Any] = {
            "do_resize": True,
            "size": {"height": 384, "width": 384},
            "fit": "squash",
            "max_tokens": 256,
            "patch_size": 16,
            "rounding": "exact",
            "merge": 1,
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
        super().__init__(**{**own, **settings})

    def __call__(self, images: Sequence[Image.Image], return_tensors: str = "pt", **settings: Any) -> Any:
        """`pixel_values` and `image_grid_hw` as `TimmForConditionalGeneration` takes them.

        Args:
            images: in RGB.
            return_tensors: "pt".
            **settings: in place of the processor's own.
        """
        use = {**vars(self), **settings}
        made = [self._one(image, use) for image in images]
        stack = torch.cat if use["fit"] == "keep" else torch.stack
        pixels, grids = zip(*made, strict=True)
        return BatchFeature({"pixel_values": stack(pixels), "image_grid_hw": torch.tensor(grids)})

    def _one(self, image: Image.Image, use: dict[str, Any]) -> tuple[Tensor, tuple[int, int]]:
        """Pixels of an image, and its rows and columns of patches."""
        patch, keeps = use["patch_size"], use["fit"] == "keep"
        if keeps:
            grid = kept_grid(image.size, patch, use["max_tokens"], use["merge"])
            drawn = canvas = (grid[1] * patch, grid[0] * patch)
        else:
            canvas = (use["size"]["width"], use["size"]["height"])
            grid = canvas_grid(canvas, patch, use["rounding"])
            drawn = drawn_size(image.size, canvas, use["fit"])
        how = pil_torch_interpolation_mapping[use["resample"]]
        pixels = F.resize(F.pil_to_tensor(image), [drawn[1], drawn[0]], interpolation=how, antialias=True)
        pixels = pixels.float()
        if use["do_rescale"]:
            pixels = pixels * use["rescale_factor"]
        if use["do_normalize"]:
            pixels = F.normalize(pixels, _three(use["image_mean"]), _three(use["image_std"]))
        # Zeros: the mean colour.
        pixels = F.pad(pixels, [0, 0, canvas[0] - drawn[0], canvas[1] - drawn[1]])
        return (cut_patches(pixels, patch, use["merge"]), grid) if keeps else (pixels, grid)


def cut_patches(pixels: Tensor, patch: int, scale: int) -> Tensor:
    """`[3, height, width] -> [patches, patch x patch x 3]`, cell by cell of `scale` x `scale` patches.

    As `timm.data.naflex_transforms.patchify_image` but for the order of patches.
    """
    cells = pixels.unflatten(2, (-1, patch)).unflatten(1, (-1, patch))
    maps = cells.permute(2, 4, 0, 1, 3).flatten(0, 2)[None]
    return by_cells(maps, scale)[0]


def _three(value: Any) -> list[float]:
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    return [float(number) for number in numbers] * (3 if len(numbers) == 1 else 1)
