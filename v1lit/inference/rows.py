"""Questions by the row: lines of a JSON file, or the examples of shards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from v1lit.backbones.processor import Processor
from v1lit.data.config import MixtureConfig, StreamConfig
from v1lit.data.encode.prompt import prompt_ids
from v1lit.data.example import Example, ExampleRef, Message
from v1lit.data.example.example import load_json, read_region
from v1lit.data.example.marks import IMAGE_MARKER
from v1lit.data.images import EncodedImage, read_header
from v1lit.data.loading.sequence import open_sequence
from v1lit.errors import first_of
from v1lit.files import sha256_of
from v1lit.grounding.markup import region_name
from v1lit.grounding.region import Region
from v1lit.inference.prompt import AboutRegions, Picture, Question, about_first, asked_first
from v1lit.paths import expand_path, is_url

LINES = (".jsonl", ".ndjson")
"""Suffixes of files with one JSON object per line."""
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """One thing to ask."""

    id: str
    pictures: tuple[Picture, ...]
    question: Question
    expected: str | None = None
    """The true answer, where the row has one."""


class Rows(Protocol):
    """Rows that can be read in any order."""

    content: str
    """Changes when the rows do."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Row:
        """One row. Raises ValueError, which says what is wrong with it."""


def open_rows(location: str, coordinates: bool = False) -> Rows:
    """The rows of a file of lines, or of shards. Raises ValueError where there are none.

    With `coordinates` the boxes of regions in questions are written, as of `AboutRegions`.
    """
    location = expand_path(location)
    if location.endswith(LINES) and not is_url(location):
        return LineRows(Path(location), coordinates)
    return ShardRows(location, coordinates)


class LineRows:
    """A file with one JSON object per line.

    `{"image": "a.jpg", "question": "Where is it?"}`; with several images `images`, a list; in place of
    `question` a conversation, `messages`, that ends with the user's turn; `regions`, as in an example or as a
    list, that `<|region_1|>` and so on in it stand for; an `id`, else the number of the line; an `answer`
    that is expected. Other keys are passed over. Paths are relative to the file. Empty lines are no rows.
    """

    def __init__(self, path: Path, coordinates: bool = False) -> None:
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        self.path, self.content, self.coordinates = path, sha256_of(path), coordinates
        starts, numbers, at = [], [], 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    starts.append(at)
                    numbers.append(number)
                at += len(line)
        if not starts:
            raise ValueError(f"{path} has no rows")
        self._starts, self._numbers = np.array(starts), np.array(numbers)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int) -> Row:
        """One row. Raises ValueError with the number of its line."""
        number = int(self._numbers[index])
        try:
            with self.path.open("rb") as file:
                file.seek(int(self._starts[index]))
                return _row(load_json(file.readline()), str(number), self.path.parent, self.coordinates)
        except ValueError as error:
            raise ValueError(f"{self.path}, line {number}: {error}") from error


def _row(value: Any, number: str, folder: Path, coordinates: bool) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"a row is a JSON object, not {type(value).__name__}")
    if ("question" in value) == ("messages" in value):
        raise ValueError(f"a row has either a question or messages; given: {first_of(sorted(value), 8)}")
    if "image" in value and "images" in value:
        raise ValueError("a row has an image or images, not both")
    names = value.get("images", [value["image"]] if "image" in value else [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("images are paths: one text as image, or a list of texts as images")
    expected = value.get("answer")
    return Row(
        id=str(value.get("id", number)),
        pictures=tuple(folder / expand_path(name) for name in names),
        question=AboutRegions(_question(value), _regions(value.get("regions", [])), coordinates),
        expected=expected if isinstance(expected, str) else None,
    )


def _regions(given: Any) -> dict[str, Region]:
    if isinstance(given, list):
        given = {region_name(number): one for number, one in enumerate(given, start=1)}
    if not isinstance(given, dict):
        raise ValueError(f"regions are a list or an object, not {type(given).__name__}")
    return {name: read_region(name, one) for name, one in given.items()}


def _question(value: dict[str, Any]) -> str | list[Message]:
    if "question" in value:
        if not isinstance(value["question"], str):
            raise ValueError(f"the question is text, not {type(value['question']).__name__}")
        return str(value["question"])
    messages = value["messages"]
    fits = isinstance(messages, list) and all(
        isinstance(one, dict) and one.get("role") in ROLES and isinstance(one.get("content"), str)
        for one in messages
    )
    if not fits or not messages or messages[-1]["role"] != "user":
        raise ValueError(
            'messages are a list of {"role": "system", "user" or "assistant", "content": text}, the last of '
            "them the user's"
        )
    return [Message(one["role"], one["content"]) for one in messages]


class ShardRows:
    """The examples of shards, in the order in which they were written: what is asked first in each."""

    def __init__(self, location: str, coordinates: bool = False) -> None:
        opened = open_sequence([MixtureConfig(location)], StreamConfig(), shuffle=False, count=True)
        if opened.lost:
            raise opened.lost[0]
        self._opened, self.coordinates = opened, coordinates
        content = "\n".join(catalog.content for catalog in opened.catalogs)
        self.content = hashlib.sha256(content.encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._opened.sequence.examples or 0)

    def read(self, index: int) -> Row:
        """One row. Raises ShardError."""
        refs = self._opened.sequence.find(0, np.array([index]))
        ref = ExampleRef(index, int(refs.sources[0]), int(refs.shards[0]), int(refs.indices[0]))
        return row_of(self._opened.examples.read(ref), self.coordinates)


def row_of(example: Example, coordinates: bool = False) -> Row:
    """What an example asks first, with the images and regions up to there."""
    messages = asked_first(example)
    shown = sum(message.content.count(IMAGE_MARKER) for message in messages)
    several = sum(message.role == "assistant" for message in example.messages) > 1
    question = about_first(example, coordinates)
    return Row(example.id, example.images[:shown], question, None if several else example.answer)


def length_of(row: Row, processor: Processor, max_tokens: int) -> int:
    """Tokens of the prompt that a row makes; its images are not decoded. Raises ValueError as that does."""
    maps = [processor.patch_map(_header(picture).size) for picture in row.pictures]
    about = AboutRegions.of(row.question)
    messages, encoding = about.messages(len(maps)), about.encoding(max_tokens)
    return len(prompt_ids(row.id, messages, maps, processor, encoding, about.named))


def _header(picture: Picture) -> EncodedImage:
    if isinstance(picture, EncodedImage):
        return picture
    assert isinstance(picture, Path)
    if not picture.is_file():
        raise ValueError(f"there is no image file {picture}")
    return read_header(picture.read_bytes())
