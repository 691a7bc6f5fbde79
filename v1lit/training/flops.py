"""Floating-point operations that a training step needs, for the share of the device's peak that is reached.

Counted as in appendix B of PaLM (arXiv 2204.02311), where a weight costs 2 operations per token forward, 2
for the gradient of its input and 2 for its own: "6 N". Part by part, since tokens of the text, patches of
images and supervised positions differ in number, and a frozen part has no gradient of its own. Without
padding, elementwise work, and what is computed a second time (activation checkpointing).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from v1lit.backbones.image_blocks import windows
from v1lit.backbones.load import part_parameters
from v1lit.backbones.work import VisionWork
from v1lit.data.encode.batch import Batch
from v1lit.parallel.tensors import whole_shape
from v1lit.pointer.model import PointAndCopyModel


class Flops(NamedTuple):
    """Operations of one part."""

    products: float
    """With weight matrices."""
    attention: float
    """Between tokens: queries with keys, weights with values; with the states of linear attention."""

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
    positions: int
    """Supervised positions."""
    examples: int
    """Examples, each with or without images."""
    vision: VisionWork
    """What the images cost, as the family states it."""
    near: int = 0
    """As `pairs`, without pairs further apart than the window, where the decoder has layers with one."""


@dataclass(frozen=True)
class Weights:
    """Numbers in the weight matrices of a part, and how many of them learn."""

    numbers: int
    learned: int

    @classmethod
    def of(cls, matrices: Iterable[Tensor]) -> Weights:
        """The weights of these matrices."""
        sizes = [(math.prod(whole_shape(matrix)), matrix.requires_grad) for matrix in matrices]
        return cls(sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns))

    def flops(self, rows: float, gradient: bool) -> float:
        """Products with `rows` rows; `gradient`: that of the rows is needed as well."""
        return rows * (2 * self.numbers + 2 * self.numbers * gradient + 2 * self.learned)


class ModelFlops:
    """Counts the operations of a model's training steps. Raises ValueError for a model without a formula."""

    def __init__(self, model: PointAndCopyModel) -> None:
        text, inner, family = model.config.get_text_config(), model.backbone, model.family
        family.vision_work(inner.config, {})  # raises where there is none
        head = model.get_output_embeddings().weight
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        # A short convolution over tokens has its few weights for every token, as a matrix has.
        rows = (nn.Linear, nn.Conv1d)
        linear = {id(m.weight): isinstance(m, rows) for m in model.modules() if isinstance(m, kinds)}
        parts = {part: part_parameters(inner, family, part).values() for part in family.parts}
        linear |= {id(weight): True for weight in family.matrices(inner)}
        matrices = {part: [p for p in found if id(p) in linear] for part, found in parts.items()}
        unused = {id(p) for module in family.unused_modules(inner) for p in module.parameters()}
        self.model = model
        self.patch_embedding = Weights.of(p for p in matrices["vision"] if not linear[id(p)])
        self.vision = Weights.of(p for p in matrices["vision"] if linear[id(p)] and id(p) not in unused)
        self.projector = Weights.of(matrices["projector"])
        self.language = Weights.of(p for p in matrices["language"] if p is not head)
        self.head = Weights.of([head])
        heads = text.num_attention_heads
        self.language_width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
        self.states = family.state_work(inner.config)
        self.windows = windows(text)

    def parts(self, work: Work) -> dict[str, Flops]:
        """Operations of a batch by part: `vision`, `projector`, `language`, `head`, `pointer`."""
        into_vision = self._learns("vision")
        into_projector = into_vision or self.projector.learned > 0
        into_language = into_projector or self._learns("language")
        vision = work.vision
        projector = self.projector.flops(vision.image_tokens + vision.surplus, into_projector)
        if vision.projector:
            projector = vision.projector + into_projector * vision.projector_backward
        # A token sees half of the others on average, and those of its image that are ahead of it.
        layers, near = len(self.windows), sum(window is not None for window in self.windows)
        full = layers - near - self.states.layers
        pairs = near * work.near + full * work.pairs + layers * vision.ahead
        causal = pairs / 2 * self.language_width
        # As the recurrence of arXiv 2412.06464, equation 10, has it; kernels that take chunks do more.
        states = work.tokens * self.states.token * (2 + 4 * into_language)
        return {
            "vision": Flops(
                self.patch_embedding.flops(vision.patches, False)
                + self.vision.flops(vision.tokens, into_vision)
                + (vision.tower + into_vision * vision.tower_backward),
                _attention(vision.attention, into_vision),
            ),
            "projector": Flops(projector, 0.0),
            "language": Flops(
                self.language.flops(work.tokens, into_language),
                _attention(causal, into_language) + states,
            ),
            "head": Flops(self.head.flops(work.positions, into_language), 0.0),
            "pointer": self._pointer(work, into_language),
        }

    def total(self, work: Work) -> float:
        """Operations of a batch, forward and backward."""
        return sum(part.total for part in self.parts(work).values())

    def _learns(self, part: str) -> bool:
        parameters = part_parameters(self.model.backbone, self.model.family, part).values()
        return any(parameter.requires_grad for parameter in parameters)

    def _pointer(self, work: Work, gradient: bool) -> Flops:
        head, image_tokens = self.model.pointer_head, work.vision.image_tokens
        query, gate = Weights.of([head.query.weight]), Weights.of([head.gate.weight] if head.gate else [])
        key = query if head.key is None else Weights.of([head.key.weight])
        products = query.flops(work.positions, gradient) + key.flops(image_tokens, gradient)
        # Every example is taken to have the mean number of positions and of image tokens.
        scores = work.positions * image_tokens / max(1, work.examples) * head.query.out_features
        backward = gradient or query.learned > 0 or key.learned > 0
        return Flops(products + gate.flops(work.positions, gradient), scores * (2 + 4 * backward))


def pairs_within(length: int, window: int | None) -> int:
    """Twice the pairs of a token with one before it (itself half), of which the nearest `window` are seen."""
    reach = length if window is None else min(length, window)
    return reach * (2 * length - reach)


def window_of(text: PreTrainedConfig) -> int | None:
    """The window of those layers of a text config that have one."""
    return next((window for window in windows(text) if window is not None), None)


def _attention(size: float, gradient: bool) -> float:
    """Two products of `size` (pairs x width) forward, and two for each of them backward."""
    return size * (4 + 8 * gradient)


class WorkSum:
    """The work of several batches. Reads from the GPU only when asked for the sum, so no step waits."""

    def __init__(self, model: PointAndCopyModel) -> None:
        self.family, self.config = model.family, model.backbone.config
        self.examples = self.images = self.positions = 0
        self.tokens = self.real_tokens = 0
        """With padding, and without."""
        self._window = window_of(model.config.get_text_config())
        self._pairs = self._near = 0
        self._images: list[dict[str, Tensor]] = []
        self._masks: list[Tensor] = []

    def add(self, batch: Batch) -> None:
        """Note a training batch, and of its pixels only the shape."""
        assert batch.counts is not None, "training batches count their labels"
        self.examples += len(batch)
        self.images += batch.images
        self.positions += batch.counts.text + batch.counts.pointers
        self.tokens += batch.tokens
        self.real_tokens += batch.real_tokens
        if batch.segment_lengths is not None:
            self._add_lengths(batch.segment_lengths)
        else:
            self._masks.append(batch.attention_mask.sum(1))
        if batch.images:
            self._images.append({name: _shape_only(value) for name, value in batch.image_inputs.items()})

    def _add_lengths(self, lengths: Iterable[int]) -> None:
        for length in lengths:
            self._pairs += pairs_within(length, None)
            self._near += pairs_within(length, self._window)

    def sum(self) -> Work:
        """All that was added."""
        for mask in self._masks:
            self._add_lengths(mask.tolist())
        self._masks = []
        images = [self.family.vision_work(self.config, inputs) for inputs in self._images]
        return Work(
            tokens=self.real_tokens,
            pairs=self._pairs,
            near=self._near,
            positions=self.positions,
            examples=self.examples,
            vision=VisionWork(*map(sum, zip(*images, strict=True))),
        )


def _shape_only(value: Tensor) -> Tensor:
    return torch.empty_like(value, device="meta") if value.is_floating_point() else value
