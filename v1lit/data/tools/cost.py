"""What an example is to a run: its tokens, what is lost of it, or why it is refused; no pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from v1lit.data.config import PackingConfig
from v1lit.data.encode.encoding import EncodingError, patch_maps_of, tokenize
from v1lit.data.example import Example, ExampleRef
from v1lit.data.images import ImageError
from v1lit.data.lengths.length import LengthOptions, length_of
from v1lit.data.sampling.packing import Packer
from v1lit.labels import IGNORE


@dataclass(frozen=True)
class Refused:
    """Why a run could not use an example: `kind` as of `ShardError`, `reason` in a sentence."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Cost:
    """What an example takes of a run, in tokens, and what the run does not get of it."""

    tokens: int
    """As they are read, pointers and image tokens included."""
    whole: int
    """What they would be if nothing was cut."""
    image_tokens: int
    learned: int
    """Labels of the loss."""
    unseen: tuple[str, ...] = ()
    """Regions that no image token sees."""
    cut_regions: int = 0
    """Regions in the part that is cut."""


@dataclass(frozen=True)
class Rules:
    """What a recipe does to the examples of one of its sources."""

    options: LengthOptions
    packing: PackingConfig | None = None
    """Limits of a row, where rows are filled."""

    def mapped(self, example: Example, shard: str, index: int) -> tuple[Example | None, Refused | None]:
        """What the map makes of example `index` of `shard`, or why it cannot; neither where it leaves it out.

        A random map draws as in epoch 0, of which the example has index `index` here. Raises MapError.
        """
        if self.options.map is None:
            return example, None
        try:
            return self.options.map(example, shard, ExampleRef(index, 0, 0, index)), None
        except ImageError as error:
            return None, Refused("image", str(error))

    def cost(self, example: Example) -> tuple[Cost | None, Refused | None]:
        """What an example takes that the map has made, or why it is refused."""
        processor, encoding = self.options.processor, self.options.encoding
        try:
            sequence = tokenize(example, patch_maps_of(example, processor), processor, encoding)
        except EncodingError as error:
            return None, Refused("length", str(error))
        length = length_of(sequence)
        if self._packer is not None and (problem := self._packer.problem(length)):
            return None, Refused("length", problem)
        cost = Cost(
            tokens=length.tokens,
            whole=len(sequence.ids),
            image_tokens=length.image_tokens,
            # Nothing predicts the first token.
            learned=sum(label != IGNORE for label in sequence.labels[1 : sequence.kept]),
            unseen=tuple(sequence.unseen),
            cut_regions=sum(span.stop > sequence.kept for span in sequence.regions),
        )
        return cost, None

    @cached_property
    def _packer(self) -> Packer[None] | None:
        return None if self.packing is None or self.packing.length is None else Packer(self.packing)
