"""A micro-batch on paper: examples of one length with images of one size."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.contract import Backbone
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.segments import Segments, packed_positions
from v1lit.errors import OptionError
from v1lit.grounding.region import Size
from v1lit.labels import IGNORE
from v1lit.plan.paper import Paper
from v1lit.pointer.model import PointAndCopyModel


@dataclass(frozen=True)
class ImageShape:
    """What an image becomes."""

    tokens: int
    """Image tokens."""
    tensors: dict[str, Tensor] = field(compare=False)
    """Tensors for the backbone, of one image."""

    @classmethod
    def of(cls, backbone: BackboneConfig, size: Size) -> ImageShape:
        """What an image of `size` (width, height in pixels) becomes with the recipe's image options."""
        family: Backbone = get_backbone(backbone.name)
        if backbone.weights == "tiny":
            processor = family.image_processor("tiny", backbone.tiny, **backbone.image)
        else:
            processor = family.image_processor(**backbone.image)
        tensors, maps = family.preprocess([Image.new("RGB", size)], processor)
        return cls(len(maps[0].boxes), tensors)


@dataclass(frozen=True)
class BatchShape:
    """What a micro-batch of one GPU holds."""

    examples: int
    tokens: int
    """Tokens of each example, its image's included."""
    image: ImageShape | None
    """One image of each example; None for text alone."""
    sharing: int = 1
    """GPUs that share the supervised positions."""
    context: int = 1
    """GPUs that share the tokens in the decoder."""

    def __post_init__(self) -> None:
        least = self.image_tokens + 2
        if self.tokens < least:
            why = (
                f"an example has {self.image_tokens} image tokens; give {least} or more, or a smaller --image"
            )
            raise OptionError("--tokens", self.tokens, why)

    @property
    def image_tokens(self) -> int:
        """Image tokens of an example."""
        return self.image.tokens if self.image else 0

    @property
    def positions(self) -> int:
        """Supervised positions of an example: all but image tokens, at most."""
        return self.tokens - self.image_tokens - 1

    @property
    def total(self) -> int:
        """Tokens of the micro-batch."""
        return self.examples * self.tokens


@dataclass(frozen=True)
class PaperBatch:
    """The real integers of a micro-batch; its pixels come on paper."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    integers: dict[str, Tensor]
    pixels: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: PointAndCopyModel, shape: BatchShape) -> PaperBatch:
        """A packed row of `shape`."""
        image_token = model.config.image_token_id
        text = next(i for i in range(3) if i != image_token)
        ids = torch.full((shape.examples, shape.tokens), text)
        ids[:, 1 : 1 + shape.image_tokens] = image_token
        labels = ids.masked_fill(ids == image_token, IGNORE)
        labels[:, 0] = IGNORE
        labels[:, 1 + shape.image_tokens + math.ceil(shape.positions / shape.sharing) :] = IGNORE
        tensors = shape.image.tensors if shape.image else {}
        integers = {
            name: value.repeat(shape.examples, *(1,) * (value.ndim - 1))
            for name, value in tensors.items()
            if not value.is_floating_point()
        }
        pixels = {
            name: (value.shape[0] * shape.examples, *value.shape[1:])
            for name, value in tensors.items()
            if value.is_floating_point()
        }
        lengths = (shape.tokens,) * shape.examples
        row = ids.view(1, -1)
        positions = packed_positions(model.family, model.backbone, row, Segments(lengths), **integers)
        return cls(row, labels.view(1, -1), positions, lengths, integers, pixels)

    def inputs(self, paper: Paper) -> dict[str, Any]:
        """Arguments of the model."""
        return {
            "input_ids": self.ids,
            "labels": self.labels,
            "position_ids": self.positions,
            "segment_lengths": self.lengths,
            **self.integers,
            **{name: paper.empty(shape, torch.float32) for name, shape in self.pixels.items()},
        }
