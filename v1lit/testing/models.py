"""Tiny models of any family, and examples and batches for them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.batch import Batch, collate, flatten
from v1lit.data.encode.encoding import Encoded
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.example import Message
from v1lit.grounding.region import Size
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel

SIZES = [(56, 84), (112, 56), (84, 84), (168, 112)]
"""Widths and heights of pictures in prompts."""
QUESTION = "Where is it?"


@lru_cache
def processor(family: str) -> Processor:
    """The processor of the family's tiny version, loaded once."""
    return load_processor(BackboneConfig(family))


def build(
    family: str, pointer: PointerConfig | None = None, seed: int = 0, **options: object
) -> PointAndCopyModel:
    """A tiny model with large random weights, so that its decisions are far from ties.

    `options` are those of `BackboneConfig`.
    """
    torch.manual_seed(seed)
    model = PointAndCopyModel.build(BackboneConfig(family, **options), pointer)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "norm" not in name:
                parameter.mul_(4.0)
    return model.eval()


def noise(size: Size, seed: int = 0) -> Image.Image:
    """An image of random pixels; `size` is `(width, height)`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def prompt(family: str, images: int, seed: int = 0, words: str = QUESTION) -> Encoded:
    """A question about that many images."""
    pictures = [noise(SIZES[(seed + n) % len(SIZES)], seed + n) for n in range(images)]
    message = Message("user", "<image>\n" * images + words)
    return encode_prompt(f"p{seed}", [message], pictures, processor(family), EncodingConfig())


def mixed(family: str, images: tuple[int, ...] = (1, 0, 2)) -> list[Encoded]:
    """Prompts with these numbers of images, of different lengths."""
    return [
        prompt(family, count, seed=3 * row, words=f"{QUESTION} " * (row + 1))
        for row, count in enumerate(images)
    ]


def with_pointers(example: Encoded, family: str, seed: int = 0) -> Encoded:
    """The prompt followed by text and, where there is an image, pointers; all of it to be learned."""
    start = processor(family).pointer_start
    tokens = sum(map(len, example.patch_maps))
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(5, 200, (6,), generator=generator)
    pointers = start + torch.randint(0, tokens, (4,), generator=generator) if tokens else text[:0]
    answer = torch.cat([text[:3], pointers, text[3:]])
    return replace(
        example,
        input_ids=torch.cat([example.input_ids, answer]),
        labels=torch.cat([example.labels, answer]),
    )


def with_end(example: Encoded, family: str) -> Encoded:
    """The example with the end of a run, as a choice of the pointer head, behind its last pointer."""
    end = processor(family).pointer_start + sum(map(len, example.patch_maps))
    places = (example.labels >= processor(family).pointer_start).nonzero()[-1:, 0] + 1

    def put_in(ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([ids[: int(places)], ids.new_tensor([end]), ids[int(places) :]])

    if not len(places):
        return example
    return replace(example, input_ids=put_in(example.input_ids), labels=put_in(example.labels))


def training_examples(family: str, images: tuple[int, ...] = (1, 0, 2)) -> list[Encoded]:
    """Prompts with these numbers of images and answers to learn."""
    return [with_pointers(example, family, seed) for seed, example in enumerate(mixed(family, images))]


def training_batch(family: str, images: tuple[int, ...] = (1, 0, 2)) -> Batch:
    """A batch of `training_examples` in padded rows."""
    return collate(training_examples(family, images), processor(family).pad_token_id)


def packed_batch(family: str, images: tuple[int, ...] = (1, 0, 2)) -> Batch:
    """A batch of `training_examples` in one row."""
    return flatten(training_examples(family, images))


def inputs(batch: Batch) -> dict[str, Any]:
    """What the model takes of a batch, padded or packed."""
    tensors: dict[str, Any] = {"input_ids": batch.input_ids, **batch.image_inputs}
    if batch.segment_lengths is None:
        return {**tensors, "attention_mask": batch.attention_mask}
    return {**tensors, "segment_lengths": batch.segment_lengths}


def prefers_pointing(family: str) -> PointAndCopyModel:
    """A tiny model that likes to point: its pointer logits are scaled up."""
    model = build(family)
    model.pointer_head.query.weight.data.mul_(6.0)
    return model


def generate(model: PointAndCopyModel, batch: Batch, **options: Any) -> torch.Tensor:
    """Ten tokens after each prompt, `[rows, 10]`, from the same seed each time."""
    torch.manual_seed(0)
    stop = model.config.get_text_config().eos_token_id
    limits = {"max_new_tokens": 10, "min_new_tokens": 10, "eos_token_id": stop, "pad_token_id": 0}
    ids: torch.Tensor = model.generate(**inputs(batch), **limits, **options)
    return ids[:, batch.input_ids.shape[1] :]
