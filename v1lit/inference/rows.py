"""Questions by the row: lines of a JSON file, or the examples of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig, MixtureConfig, StreamConfig
from v1lit.data.encode.prompt import prompt_ids
from v1lit.data.example import Example, ExampleRef, Message
from v1lit.data.example.example import load_json
from v1lit.data.example.marks import IMAGE_MARKER
from v1lit.data.images import EncodedImage, read_header
from v1lit.data.loading.sequence import open_sequence
from v1lit.errors import first_of
from v1lit.files import sha256_of
from v1lit.inference.prompt import Picture, Question, as_messages
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


def open_rows(location: str) -> Rows:
    """The rows of a file of lines, or of shards. Raises ValueError where there are none."""
    location = expand_path(location)
    if location.endswith(LINES) and not is_url(location):
        return LineRows(Path(location))
    return ShardRows(location)


class LineRows:
    """A file with one JSON object per line.

    `{"image": "a.jpg", "question": "Where is it?"}`; with several images `images`, a list; in place of
    `question` a conversation, `messages`, that ends with the user's turn; an `id`, else the number of the
    line; an `answer` that is expected. Other keys are passed over. Paths are relative to the file. Empty
    lines are no rows.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        self.path, self.content = path, sha256_of(path)
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
                return _row(load_json(file.readline()), str(number), self.path.parent)
        except ValueError as error:
            raise ValueError(f"{self.path}, line {number}: {error}") from error


def _row(value: Any, number: str, folder: Path) -> Row:
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
        question=_question(value),
        expected=expected if isinstance(expected, str) else None,
    )


def _question(value: dict[str, Any]) -> Question:
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

    def __init__(self, location: str) -> None:
        opened = open_sequence([MixtureConfig(location)], StreamConfig(), shuffle=False, count=True)
        if opened.lost:
            raise opened.lost[0]
        self._opened = opened
        content = "\n".join(catalog.content for catalog in opened.catalogs)
        self.content = hashlib.sha256(content.encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._opened.sequence.examples or 0)

    def read(self, index: int) -> Row:
        """One row. Raises ShardError."""
        refs = self._opened.sequence.find(0, np.array([index]))
        ref = ExampleRef(index, int(refs.sources[0]), int(refs.shards[0]), int(refs.indices[0]))
        return row_of(self._opened.examples.read(ref))


def row_of(example: Example) -> Row:
    """What an example asks first, with the images that are shown up to there."""
    question = list(takewhile(lambda message: message.role != "assistant", example.messages))
    shown = sum(message.content.count(IMAGE_MARKER) for message in question)
    several = sum(message.role == "assistant" for message in example.messages) > 1
    return Row(example.id, example.images[:shown], question, None if several else example.answer)


def length_of(row: Row, processor: Processor, config: EncodingConfig) -> int:
    """Tokens of the prompt that a row makes; its images are not decoded. Raises ValueError as that does."""
    maps = [processor.patch_map(_header(picture).size) for picture in row.pictures]
    messages: Sequence[Message] = as_messages(row.question, len(maps))
    return len(prompt_ids(row.id, messages, maps, processor, config))


def _header(picture: Picture) -> EncodedImage:
    if isinstance(picture, EncodedImage):
        return picture
    assert isinstance(picture, Path)
    if not picture.is_file():
        raise ValueError(f"there is no image file {picture}")
    return read_header(picture.read_bytes())
