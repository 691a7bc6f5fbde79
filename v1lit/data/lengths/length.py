"""How many tokens, image tokens and images an example has once it is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import SequenceBuilder, patch_maps_of, tokenize
from v1lit.data.encode.mapping import ExampleMap
from v1lit.data.example import Example, ExampleRef
from v1lit.data.lengths.fingerprint import fingerprint

MAX_IMAGES = 2**16 - 1
"""Images that a table can count."""
LEFT_OUT = 2**32 - 1
"""Stands in the column `tokens` for an example that the map leaves out."""


@dataclass(frozen=True)
class Length:
    """What an example takes of a batch."""

    tokens: int
    """Pointers and image tokens included."""
    image_tokens: int
    images: int


UNUSABLE = Length(1, 0, 0)
"""Length of an example that cannot be read: it is planned, and skipped when its turn comes."""


def measure(example: Example, processor: Processor, encoding: EncodingConfig) -> Length:
    """Length of what `encode` makes of an example, exactly; its images are not decoded.

    Raises EncodingError where `encode` does. Damage in the pixels of an image is not noticed.
    """
    return length_of(tokenize(example, patch_maps_of(example, processor), processor, encoding))


def length_of(sequence: SequenceBuilder) -> Length:
    """What `tokenize` has made takes of a batch."""
    maps = sequence.shown_maps
    return Length(sequence.kept, sum(map(len, maps)), len(maps))


@dataclass(frozen=True)
class LengthOptions:
    """What decides how long the examples of a source are."""

    processor: Processor
    encoding: EncodingConfig
    map: ExampleMap | None = None
    """Changes examples before they are measured, or leaves them out."""

    @cached_property
    def fingerprint(self) -> str:
        """The name of these options in tables."""
        return fingerprint(self.processor, self.encoding, self.map)

    def measure(self, example: Example, shard: str, ref: ExampleRef | None = None) -> Length | None:
        """Length of an example of `shard`; None where the map leaves it out. A random map needs `ref`.

        Raises EncodingError as `encode`, MapError and ImageError as the map.
        """
        mapped = example if self.map is None else self.map(example, shard, ref)
        return None if mapped is None else measure(mapped, self.processor, self.encoding)
