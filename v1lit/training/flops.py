"""Floating-point operations that a training step needs, for the share of the device's peak that is reached.

Counted as in appendix B of PaLM (arXiv 2204.02311), where a weight costs 2 operations per token forward, 2
for the gradient of its input and 2 for its own: "6 N". Part by part, since tokens of the text, patches of
images and supervised positions differ in number, and a frozen part has no gradient of its own. Without
padding, elementwise work, and what is computed a second time (activation checkpointing).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from v1lit.backbones.efficiency import part_layers
from v1lit.backbones.load import part_parameters
from v1lit.data.encode.batch import Batch
from v1lit.pointer.model import PointAndCopyModel


class Flops(NamedTuple):
    """Operations of one part."""

    products: float
    """With weight matrices."""
    attention: float
    """Between tokens: queries with keys, weights with values."""

    @property
    def total(self) -> float:
        return self.products + self.attention


@dataclass(frozen=True)
class Work:
    """What decides how much a training batch costs, in counts of things."""

    tokens: int
    """Text decoder's, without padding."""
    pairs: int
    """Sum of squared lengths of the examples."""
    patches: int
    """Cut out of the images."""
    vision_tokens: int
    """Rows of the vision tower's layers: patches and class tokens."""
    image_pairs: int
    """Sum of squared lengths of the images (frames, tiles), in vision tokens."""
    window_pairs: int
    """The same of the windows that Qwen2.5-VL's tower attends in."""
    image_tokens: int
    positions: int
    """Supervised ones."""
    examples: int


@dataclass(frozen=True)
class Weights:
    """Numbers in the weight matrices of a part, and how many of them learn."""

    numbers: int
    learned: int

    @classmethod
    def of(cls, matrices: Iterable[Tensor]) -> Weights:
        found = list(matrices)
        return cls(sum(one.numel() for one in found), sum(one.numel() for one in found if one.requires_grad))

    def flops(self, rows: float, gradient: bool) -> float:
        """Products with `rows` rows; `gradient`: that of the rows is needed as well."""
        return rows * (2 * self.numbers + 2 * self.numbers * gradient + 2 * self.learned)


class ModelFlops:
    """Counts the operations of a model's training steps. Raises ValueError for a model without a formula."""

    def __init__(self, model: PointAndCopyModel) -> None:
        text, vision = model.config.get_text_config(), _vision_config(model)
        inner, family = model.backbone, model.family
        head = model.get_output_embeddings().weight
        kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
        linear = {id(m.weight): isinstance(m, nn.Linear) for m in model.modules() if isinstance(m, kinds)}
        parts = {part: part_parameters(inner, family, part).values() for part in family.parts}
        matrices = {part: [p for p in found if id(p) in linear] for part, found in parts.items()}
        layers = part_layers(inner, family, "vision")[: _layers_used(model, vision)]
        used = {id(p) for layer in layers for p in layer.parameters()}
        self.model = model
        self.patch_embedding = Weights.of(p for p in matrices["vision"] if not linear[id(p)])
        self.vision = Weights.of(p for p in matrices["vision"] if id(p) in used)
        self.projector = Weights.of(matrices["projector"])
        self.language = Weights.of(p for p in matrices["language"] if p is not head)
        self.head = Weights.of([head])
        self.images = ImageShapes(vision, model.backbone.config)
        self.vision_width = getattr(vision, "embed_dim", None) or vision.hidden_size
        self.windowed = self.images.windowed_layers(len(layers))
        self.vision_layers = len(layers)
        heads = text.num_attention_heads
        self.language_width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
        self.language_layers = text.num_hidden_layers

    def parts(self, work: Work) -> dict[str, Flops]:
        """Operations of a batch by part: `vision`, `projector`, `language`, `head`, `pointer`."""
        into_vision = _learns(self.model.backbone, self.model.family, ("vision",))
        into_projector = into_vision or self.projector.learned > 0
        into_language = into_projector or _learns(self.model.backbone, self.model.family, ("language",))
        full = (self.vision_layers - self.windowed) * work.image_pairs + self.windowed * work.window_pairs
        causal = self.language_layers * work.pairs / 2  # a token sees half of the others on average
        return {
            "vision": Flops(
                self.patch_embedding.flops(work.patches, False)
                + self.vision.flops(work.vision_tokens, into_vision),
                _attention(full, self.vision_width, into_vision),
            ),
            "projector": Flops(self.projector.flops(work.image_tokens, into_projector), 0.0),
            "language": Flops(
                self.language.flops(work.tokens, into_language),
                _attention(causal, self.language_width, into_language),
            ),
            "head": Flops(self.head.flops(work.positions, into_language), 0.0),
            "pointer": self._pointer(work, into_language),
        }

    def total(self, work: Work) -> float:
        """Operations of a batch, forward and backward."""
        return sum(part.total for part in self.parts(work).values())

    def _pointer(self, work: Work, gradient: bool) -> Flops:
        head = self.model.pointer_head
        query, gate = Weights.of([head.query.weight]), Weights.of([head.gate.weight] if head.gate else [])
        key = query if head.key is None else Weights.of([head.key.weight])
        products = query.flops(work.positions, gradient) + key.flops(work.image_tokens, gradient)
        # Every example is taken to have the mean number of positions and of image tokens.
        scores = work.positions * work.image_tokens / max(1, work.examples) * head.query.out_features
        backward = gradient or query.learned > 0 or key.learned > 0
        return Flops(products + gate.flops(work.positions, gradient), scores * (2 + 4 * backward))


def _attention(pairs: float, width: int, gradient: bool) -> float:
    """Two products of `pairs x width` forward, and two for each of them backward."""
    return pairs * width * (4 + 8 * gradient)


def _learns(model: Any, family: Any, parts: Sequence[str]) -> bool:
    return any(p.requires_grad for part in parts for p in part_parameters(model, family, part).values())


def _vision_config(model: PointAndCopyModel) -> Any:
    config = getattr(model.backbone.config, "vision_config", None)
    if config is None or not hasattr(config, "hidden_size"):
        raise ValueError(
            f"no formula for the operations of {model.config.family}: its config has no vision tower"
        )
    return config


def _layers_used(model: PointAndCopyModel, vision: Any) -> int:
    """Layers of the tower up to the one whose output is taken: LLaVA takes the last but one."""
    layers: int = getattr(vision, "depth", None) or vision.num_hidden_layers
    taken = getattr(model.backbone.config, "vision_feature_layer", -1)
    indices = [taken] if isinstance(taken, int) else taken
    return max(index if index >= 0 else layers + 1 + index for index in indices)


# ---- how large the images of a batch are ------------------------------------------------------------------


class ImageShapes:
    """Patches, pairs of patches and image tokens of a batch, from the shapes of its image tensors."""

    def __init__(self, vision: Any, config: Any) -> None:
        self.vision = vision
        self.by_grid = hasattr(vision, "spatial_merge_size")
        if not self.by_grid:
            height, width = _pair(vision.image_size)
            rows, columns = height // _pair(vision.patch_size)[0], width // _pair(vision.patch_size)[1]
            self.patches = rows * columns
            self.tokens = round(self.patches * getattr(config, "downsample_ratio", 1.0) ** 2)

    def windowed_layers(self, layers: int) -> int:
        """How many layers attend in windows only."""
        full = getattr(self.vision, "fullatt_block_indexes", None)
        return 0 if full is None else layers - len(full)

    def of_grids(self, grids: list[list[int]]) -> dict[str, int]:
        """grids: frames, rows and columns of patches per image."""
        merged = self.vision.spatial_merge_size
        window = getattr(self.vision, "window_size", None)
        side = 1 if window is None else window // merged // self.vision.patch_size * merged
        return {
            "patches": sum(t * h * w for t, h, w in grids),
            "vision_tokens": sum(t * h * w for t, h, w in grids),
            "image_pairs": sum(t * (h * w) ** 2 for t, h, w in grids),
            "window_pairs": sum(t * _squares(h, side) * _squares(w, side) for t, h, w in grids),
            "image_tokens": sum(t * h * w // merged**2 for t, h, w in grids),
        }

    def of_pictures(self, pictures: int) -> dict[str, int]:
        """pictures: images or tiles, all of the size that the tower was made for."""
        return {
            "patches": pictures * self.patches,
            "vision_tokens": pictures * (self.patches + 1),
            "image_pairs": pictures * (self.patches + 1) ** 2,
            "window_pairs": 0,
            "image_tokens": pictures * self.tokens,
        }


def _squares(side: int, window: int) -> int:
    """Sum of squares of the pieces into which windows cut a side."""
    return side // window * window**2 + (side % window) ** 2


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class WorkSum:
    """The work of several batches. Reads from the GPU only when asked for the sum, so no step waits."""

    def __init__(self, images: ImageShapes) -> None:
        self.images = images
        self._grids: list[Tensor] = []
        self._masks: list[Tensor] = []
        self._pairs = self._tokens = self._pictures = self._positions = self._examples = 0

    def add(self, batch: Batch) -> None:
        assert batch.counts is not None, "training batches count their labels"
        self._tokens += batch.real_tokens
        self._examples += len(batch)
        self._positions += batch.counts.text + batch.counts.pointers
        if batch.segment_lengths is not None:
            self._pairs += sum(length**2 for length in batch.segment_lengths)
        else:
            self._masks.append(batch.attention_mask.sum(1))
        if self.images.by_grid:
            self._grids += [batch.image_inputs["image_grid_thw"]] if batch.images else []
        elif batch.images:
            self._pictures += batch.image_inputs["pixel_values"].shape[0]

    def sum(self) -> Work:
        """All that was added."""
        if self.images.by_grid:
            shapes = self.images.of_grids(torch.cat(self._grids).tolist() if self._grids else [])
        else:
            shapes = self.images.of_pictures(self._pictures)
        padded = int(torch.cat(self._masks).square().sum()) if self._masks else 0
        return Work(
            tokens=self._tokens,
            pairs=self._pairs + padded,
            positions=self._positions,
            examples=self._examples,
            **shapes,
        )
