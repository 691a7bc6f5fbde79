"""How many tokens, image tokens and images an example has once it is encoded."""

from __future__ import annotations

from dataclasses import dataclass

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import patch_maps_of, tokenize
from v1lit.data.encode.mapping import ExampleMap
from v1lit.data.example import Example, ExampleRef

MAX_IMAGES = 2**16 - 1


LEFT_OUT = 2**32 - 1
"""In the column `tokens`: of an example that the map leaves out."""


@dataclass(frozen=True)
class Length:
    """What an example takes of a batch: tokens (pointers and image tokens included), image tokens, images."""

    tokens: int
    image_tokens: int
    images: int


def measure(example: Example, processor: Processor, encoding: EncodingConfig) -> Length:
    """Length of what `encode` makes of an example, exactly; its images are not decoded.

    Raises EncodingError where `encode` does. Damage in the pixels of an image is not seen here.
    """
    patch_maps = patch_maps_of(example, processor)
    sequence = tokenize(example, patch_maps, processor, encoding)
    # What is cut never holds an image: one that does not fit is an EncodingError.
    return Length(sequence.kept, sum(map(len, patch_maps)), len(patch_maps))


def measure_mapped(
    example: Example,
    shard: str,
    processor: Processor,
    encoding: EncodingConfig,
    map: ExampleMap | None,
    ref: ExampleRef | None = None,
) -> Length | None:
    """Length of what a map makes of an example of `shard`; None where it leaves the example out.

    Raises EncodingError as `measure`, MapError and ImageError as the map.
    """
    mapped = example if map is None else map(example, shard, ref)
    return None if mapped is None else measure(mapped, processor, encoding)


UNUSABLE = Length(1, 0, 0)
"""Of an example that cannot be read: it is planned, and skipped when its turn comes."""
