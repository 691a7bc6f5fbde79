"""What a strategy is: the four things that it says of a look at the image, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from PIL import Image
from torch import Tensor, nn

from v1lit.grounding.patch_map import PatchMap
from v1lit.grounding.region import Box, Region, Size

if TYPE_CHECKING:
    from transformers import LogitsProcessor

EncodeText = Callable[..., list[int]]
"""Makes ids of a text, of somebody's words with `special=False`: `Processor.encode_text`."""
GROUP = "revisit.options"
"""Where the options of a strategy stand in a recipe."""


PatchMapOf = Callable[[Size], PatchMap]
"""Makes the patch map of an image of this `(width, height)`."""


@dataclass(frozen=True)
class Cut:
    """A part of an image that is shown by itself."""

    image: int
    """Index of the image that it is cut out of."""
    box: tuple[int, int, int, int]
    """Left, upper, right and lower edge in pixels of that image."""
    size: Size
    """`(width, height)` in which it is shown."""

    def of(self, picture: Image.Image) -> Image.Image:
        """The part of a picture."""
        return picture.crop(self.box).resize(self.size, Image.Resampling.BICUBIC)


class RegionWriter(Protocol):
    """A sequence of tokens as it grows, as far as strategies write into it."""

    patch_maps: Sequence[PatchMap]
    """One per image."""

    @property
    def coordinates(self) -> bool:
        """Whether a box is to be written before pointers (`data.encoding.coordinates`)."""

    def add_text(self, text: str, learn: bool) -> None:
        """Append words, and learn them or not."""

    def add_pointers(
        self, name: str, region: Region, tokens: Sequence[int], learn: bool, first_only: bool = False
    ) -> None:
        """Append pointers to these image tokens, and learn them, all or `first_only`, or not.

        A region without any is noted as unseen.
        """

    def patch_map_of(self, size: Size) -> PatchMap:
        """The patch map of an image of this `(width, height)`."""

    def add_cut(self, cut: Cut) -> None:
        """Append a part of an image as a further image."""

    def add_end(self, learn: bool) -> None:
        """Append the end of a run of pointers, for a strategy that has `ends`, and learn it or not."""

    def put_in(self, tokens: Sequence[int]) -> None:
        """Append these image tokens once more, as pointers that are never learned."""


class Strategy(ABC):
    """A way to look at the image again: a dataclass whose fields are its options.

    It says how a region becomes tokens and labels (`write_region`), what stands at the input of a pointer
    (`copies`), what else is learned (`learned`, `regions_weight`, `ends`), and what a model may generate
    (`points`, `steering`, `beams`). Training and generation use the same object.
    """

    points: ClassVar[bool] = True
    """Whether it writes pointers: a model of one that does not never generates any."""
    beams: ClassVar[bool] = True
    """Whether rows may change their places while a model generates."""

    @property
    def regions_weight(self) -> float:
        """Weight of a loss that learns each patch of a region by itself, where its first is predicted."""
        return 0.0

    @property
    def ends(self) -> bool:
        """Whether the pointer head has one choice more: the end of a run, with a learned key and input."""
        return False

    @abstractmethod
    def write_region(self, sequence: RegionWriter, name: str, region: Region, learn: bool) -> None:
        """Append what stands for a region of a trace.

        Args:
            sequence: to append to.
            name: of the region.
            region: in pixels of its image.
            learn: whether what a model is to generate is learned.
        """

    def write_behind(self, sequence: RegionWriter, words: str, learn: bool) -> str:
        """The words that are left of those behind a region, when what the strategy writes there is appended.

        Args:
            sequence: to append to, which ends with a region.
            words: up to the next region, or to the end of the message.
            learn: whether what a model is to generate is learned.
        """
        return words

    def pixels(self, numbers: Sequence[float], size: Size) -> Box:
        """The box of four numbers, as it writes them, in pixels of an image of this `(width, height)`."""
        x1, y1, x2, y2 = (number * side for number, side in zip(numbers, size * 2, strict=True))
        return x1, y1, x2, y2

    def learned(self, hidden: int) -> LookModule | None:
        """A fresh module of what it learns itself, for embeddings of that width; None for nothing."""
        return None

    def copies(self, values: Tensor, learned: LookModule | None) -> Tensor:
        """`[image_tokens, width]`: what stands at the input where an image token is pointed at.

        Args:
            values: `[image_tokens, width]`, the input embeddings of the image tokens; with some backbones
                each is longer than `hidden`, by what enters further decoder layers. That may be left out.
            learned: the module that `learned` made, as it is by now.
        """
        return values

    def steering(
        self, pointer_start: int, image_token_id: int, encode_text: EncodeText | None
    ) -> list[LogitsProcessor]:
        """What changes the logits of every step in `generate`, last of all; made anew for every call.

        Args:
            pointer_start: id of the pointer to image token 0.
            image_token_id: id of the tokens of images.
            encode_text: makes ids of a text, where the caller of `generate` has it.

        Raises ValueError where the strategy looks for words and there is no `encode_text`.
        """
        return []


class LookModule(nn.Module):
    """Parameters that a strategy learns; its model begins them by `init_weights`."""

    def init_weights(self, std: float) -> None:
        """Draw the parameters, with the deviation of the backbone's own."""
        raise NotImplementedError
