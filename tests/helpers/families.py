"""Tiny models of every family and mixed batches for them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.batch import Batch, collate, flatten
from v1lit.data.encode.encoding import Encoded, encode_prompt
from v1lit.data.example import Message
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel

FAMILIES = ["qwen2_5_vl", "qwen2_vl", "llava", "internvl"]
SIZES = [(56, 84), (112, 56), (84, 84), (168, 112)]


@lru_cache
def processor(family: str) -> Processor:
    return load_processor(BackboneConfig(family))


def build(
    family: str, pointer: PointerConfig | None = None, seed: int = 0, **options: object
) -> PointAndCopyModel:
    """A tiny model with large random weights, so that its decisions are far from ties."""
    torch.manual_seed(seed)
    model = PointAndCopyModel.build(BackboneConfig(family, **options), pointer)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "norm" not in name:
                parameter.mul_(4.0)
    return model.eval()


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def prompt(family: str, images: int, seed: int = 0, words: str = "Where is it?") -> Encoded:
    pictures = [picture(seed + n, SIZES[(seed + n) % len(SIZES)]) for n in range(images)]
    message = Message("user", "<image>\n" * images + words)
    return encode_prompt(f"p{seed}", [message], pictures, processor(family), EncodingConfig())


def mixed(family: str, images: tuple[int, ...] = (1, 0, 2)) -> list[Encoded]:
    """Prompts with these numbers of images, of different lengths."""
    return [
        prompt(family, n, seed=3 * row, words="Where is it? " * (row + 1)) for row, n in enumerate(images)
    ]


def with_pointers(example: Encoded, family: str, seed: int = 0) -> Encoded:
    """The prompt followed by text and, where there is an image, pointers; all of it to be learned."""
    start = processor(family).pointer_start
    tokens = sum(map(len, example.patch_maps))
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(5, 200, (6,), generator=generator)
    pointers = start + torch.randint(0, tokens, (4,), generator=generator) if tokens else text[:0]
    answer = torch.cat([text[:3], pointers, text[3:]])
    return Encoded(
        id=example.id,
        input_ids=torch.cat([example.input_ids, answer]),
        labels=torch.cat([example.labels, answer]),
        image_inputs=example.image_inputs,
        patch_maps=example.patch_maps,
        regions=(),
    )


def training_batch(family: str, images: tuple[int, ...] = (1, 0, 2)) -> Batch:
    return collate(training_examples(family, images), processor(family).pad_token_id)


def training_examples(family: str, images: tuple[int, ...] = (1, 0, 2)) -> list[Encoded]:
    return [with_pointers(e, family, seed) for seed, e in enumerate(mixed(family, images))]


def packed_batch(family: str, images: tuple[int, ...] = (1, 0, 2)) -> Batch:
    return flatten(training_examples(family, images))


def inputs(batch: Batch) -> dict[str, Any]:
    """What the model takes, padded or packed."""
    given: dict[str, object] = {"input_ids": batch.input_ids, **batch.image_inputs}
    if batch.segment_lengths is None:
        return {**given, "attention_mask": batch.attention_mask}
    return {**given, "segment_lengths": batch.segment_lengths}
