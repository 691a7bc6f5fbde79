"""A conversation up to where the answer begins, for generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import Encoded, EncodingError, build
from v1lit.data.encode.given_regions import given_regions
from v1lit.data.example import Message
from v1lit.data.example.marks import IMAGE_MARKER, escape
from v1lit.grounding.patch_map import PatchMap
from v1lit.grounding.region import Region
from v1lit.labels import IGNORE

if TYPE_CHECKING:
    from v1lit.backbones.processor import Processor


def encode_prompt(
    name: str,
    messages: Sequence[Message],
    images: Sequence[Image.Image],
    processor: Processor,
    config: EncodingConfig,
    regions: Mapping[str, Region] | None = None,
) -> Encoded:
    """A conversation that ends with the user's turn, up to where the answer begins, for generation.

    Args:
        name: for error messages.
        messages: in which `<image>` stands for an image, and the name of a region for the region.
        images: in the order of their marks.
        processor: of the model.
        config: of the encoding.
        regions: by name; written as in training, pointers included.

    Raises EncodingError if it is longer than `max_tokens` or lacks an image, and RegionError, one of those,
    as `given_regions`.
    """
    refuse_other_marks(name, messages, len(images))
    image_inputs, patch_maps = processor.images(images)
    ids = prompt_ids(name, messages, patch_maps, processor, config, regions)
    return Encoded(
        id=name,
        input_ids=torch.tensor(ids),
        labels=torch.full((len(ids),), IGNORE),
        image_inputs=image_inputs,
        patch_maps=tuple(patch_maps),
        regions=(),
    )


def prompt_ids(
    name: str,
    messages: Sequence[Message],
    patch_maps: Sequence[PatchMap],
    processor: Processor,
    config: EncodingConfig,
    regions: Mapping[str, Region] | None = None,
) -> list[int]:
    """The ids of a prompt whose images have these patch maps; errors as of `encode_prompt`."""
    refuse_other_marks(name, messages, len(patch_maps))
    placed = given_regions(messages, regions or {}, patch_maps, processor)
    sequence = build(messages, placed, patch_maps, processor, config)
    sequence.add_mark(processor.backbone.chat.marks("assistant")[0])
    if len(sequence.ids) > config.max_tokens:
        raise EncodingError(
            f"the prompt of {name!r} has {len(sequence.ids)} tokens, more than the {config.max_tokens} of "
            "data.encoding.max_tokens"
        )
    return sequence.ids


def refuse_other_marks(name: str, messages: Sequence[Message], images: int) -> None:
    """Raise EncodingError, naming the prompt, where its messages do not mark a place for every image."""
    marks = sum(message.content.count(IMAGE_MARKER) for message in messages)
    if marks != images:
        raise EncodingError(
            f"{name!r} has {images} images, but {marks} {IMAGE_MARKER} marks in its messages; where the "
            f"word is meant, write {escape(IMAGE_MARKER)}"
        )
