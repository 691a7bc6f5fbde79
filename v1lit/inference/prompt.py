"""Pictures and questions as people give them, and the prompts that are made of them."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import Encoded
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.example import Message
from v1lit.data.example.marks import IMAGE_MARKER, escape, words_of
from v1lit.data.images import EncodedImage, decode_image
from v1lit.grounding.picture import as_seen
from v1lit.paths import expand_path
from v1lit.pointer.model import PointAndCopyModel

_MARKS = re.compile(rf"\A(?:{IMAGE_MARKER}\s*)+")
Picture = Image.Image | EncodedImage | bytes | str | Path
"""A picture as it may be given: a Pillow image, the bytes of an image file, or its path."""
Question = str | Sequence[Message]
"""Somebody's words, or a conversation that ends with the user's turn."""


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

    Raises ValueError for pictures that cannot be read, and prompts of more than `max_tokens`.
    """
    began = time.perf_counter()
    opened = [open_picture(picture) for picture in pictures]
    messages = as_messages(question, len(opened))
    encoded = encode_prompt(name, messages, opened, processor, EncodingConfig(max_tokens=max_tokens))
    words, seconds = words_of(messages[-1].content), time.perf_counter() - began
    return Prompt(encoded, opened, tuple(pictures), words, seconds)


def as_messages(question: Question, images: int) -> Sequence[Message]:
    """A question given as text is somebody's words, but for the marks that it begins with."""
    if not isinstance(question, str):
        return question
    words = _MARKS.sub("", question)
    marks = question[: len(question) - len(words)] or f"{IMAGE_MARKER}\n" * images
    return [Message("user", marks + escape(words))]


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
