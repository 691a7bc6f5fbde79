"""Pictures and questions as people give them, and the prompts that are made of them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from PIL import Image

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import Encoded
from v1lit.data.encode.given_regions import RegionError
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.example import Example, Message
from v1lit.data.example.marks import IMAGE_MARKER, escape, words_of
from v1lit.data.images import EncodedImage, decode_image
from v1lit.errors import OptionError
from v1lit.grounding.markup import REGION_NAME, region_name
from v1lit.grounding.picture import as_seen
from v1lit.grounding.region import Region
from v1lit.paths import expand_path
from v1lit.pointer.model import PointAndCopyModel

_MARKS = re.compile(rf"\A(?:{IMAGE_MARKER}\s*)+")
Picture = Image.Image | EncodedImage | bytes | str | Path
"""A picture as it may be given: a Pillow image, the bytes of an image file, or its path."""
Regions = Sequence[Region | Sequence[float]] | Mapping[str, Region | Sequence[float]]
"""What `<|region_1|>`, `<|region_2|>` and so on stand for, or what each name does: regions, or boxes
`(x1, y1, x2, y2)` of the first image, in pixels of the original image."""


@dataclass(frozen=True)
class AboutRegions:
    """A question in which names of regions stand where what they show is copied: "What is <|region_1|>?".

    A region is written into the prompt as into a training sequence, by pointers that the model copies.
    Raises RegionError, naming it, for what is no region.
    """

    words: str | Sequence[Message]
    """Somebody's words, or a conversation that ends with the user's turn."""
    regions: Regions = ()
    """Without any, names in words are words."""
    coordinates: bool = False
    """Write `[x1, y1, x2, y2]` before the pointers, for a model that was trained so (`data.encoding`)."""

    def __post_init__(self) -> None:
        _ = self.named

    @classmethod
    def of(cls, question: Question) -> AboutRegions:
        """Any question as one about regions, if only about none."""
        return question if isinstance(question, AboutRegions) else cls(question)

    @cached_property
    def named(self) -> dict[str, Region]:
        """The regions by their names."""
        given = self.regions
        if not isinstance(given, Mapping):
            if isinstance(given, Region) or any(isinstance(one, int | float) for one in given):
                why = "give a list of regions or boxes, also of one"
                raise OptionError("regions", given, why)
            given = {region_name(number): one for number, one in enumerate(given, start=1)}
        for name in given:
            if not REGION_NAME.fullmatch(name):
                raise RegionError(name, f"names of regions are like {region_name(1)}")
        return {name: _region(name, one) for name, one in given.items()}

    def messages(self, images: int) -> Sequence[Message]:
        """The conversation: text is somebody's words, but for the marks of images that it begins with."""
        if not isinstance(self.words, str):
            return self.words
        words = _MARKS.sub("", self.words)
        marks = self.words[: len(self.words) - len(words)] or f"{IMAGE_MARKER}\n" * images
        return [Message("user", marks + escape(words, keep_regions=bool(self.named)))]

    def encoding(self, max_tokens: int) -> EncodingConfig:
        """How it is written, in that many tokens at most."""
        return EncodingConfig(max_tokens=max_tokens, coordinates=self.coordinates)


Question = str | Sequence[Message] | AboutRegions
"""Somebody's words, a conversation that ends with the user's turn, or either with regions."""


@dataclass(frozen=True)
class Prompt:
    """A question about pictures, ready for a model."""

    encoded: Encoded
    """Its ids and images."""
    opened: Sequence[Image.Image]
    """The pixels of its pictures."""
    given: tuple[Picture, ...]
    """The pictures as they were given; opened again where they are drawn on, and not kept in memory."""
    words: str
    """The question as a reader sees it."""
    seconds: float = 0.0
    """What it took to make it."""

    @property
    def image_tokens(self) -> int:
        """Image tokens of all its pictures."""
        return sum(map(len, self.encoded.patch_maps))


def make_prompt(
    name: str, pictures: Sequence[Picture], question: Question, processor: Processor, max_tokens: int
) -> Prompt:
    """Open the pictures and encode them with the question; `name` is for messages.

    Raises ValueError for pictures that cannot be read, prompts of more than `max_tokens`, and regions that
    cannot be written.
    """
    began = time.perf_counter()
    opened = [open_picture(picture) for picture in pictures]
    about = AboutRegions.of(question)
    messages = about.messages(len(opened))
    encoded = encode_prompt(name, messages, opened, processor, about.encoding(max_tokens), about.named)
    words, seconds = words_of(messages[-1].content), time.perf_counter() - began
    return Prompt(encoded, opened, tuple(pictures), words, seconds)


def with_regions(question: Question, regions: Regions) -> Question:
    """The question with these regions, if any. Raises OptionError where it has some already."""
    if not len(regions):
        return question
    if isinstance(question, AboutRegions):
        raise OptionError("regions", regions, "the question has regions of its own: give them once")
    return AboutRegions(question, regions)


def asked_first(example: Example) -> tuple[Message, ...]:
    """The messages of an example before its first answer."""
    return tuple(takewhile(lambda message: message.role != "assistant", example.messages))


def about_first(example: Example, coordinates: bool) -> AboutRegions:
    """The same with the regions that they name."""
    messages = asked_first(example)
    names = {name for message in messages for name in REGION_NAME.findall(message.content)}
    regions = {name: region for name, region in example.regions.items() if name in names}
    return AboutRegions(messages, regions, coordinates)


def longest_sequence(model: PointAndCopyModel) -> int:
    """Tokens that the model can read, prompt and answer together."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 32768))


def as_list(pictures: Picture | Sequence[Picture]) -> list[Picture]:
    """One picture or several, as a list."""
    return list(pictures) if isinstance(pictures, list | tuple) else [pictures]  # type: ignore[list-item]


def open_picture(picture: Picture) -> Image.Image:
    """The pixels that a person sees, RGB, whichever way a picture is given: see `as_seen`.

    Raises ValueError for what is no picture, for a missing file and for an image that cannot be used.
    """
    if isinstance(picture, Image.Image):
        return as_seen(picture)
    if isinstance(picture, bytes | EncodedImage):
        return decode_image(picture)
    if not isinstance(picture, str | Path):
        raise ValueError(
            f"a picture is a Pillow image, the bytes of an image file or its path, not {_kind(picture)}"
        )
    path = Path(expand_path(picture))
    if not path.is_file():
        raise ValueError(f"there is no image file {path}")
    return decode_image(path.read_bytes())


def _kind(thing: object) -> str:
    kind = type(thing).__name__
    turned = kind in ("ndarray", "Tensor")
    return f"a {kind}; Image.fromarray makes an image of uint8 [height, width, 3]" if turned else f"a {kind}"


def _region(name: str, given: Region | Sequence[float]) -> Region:
    try:
        return Region.of(given)
    except ValueError as error:
        raise RegionError(name, str(error)) from None
