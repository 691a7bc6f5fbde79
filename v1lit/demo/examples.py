"""What there is to try: drawn scenes with their questions, or rows of one's own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from v1lit.data.example.marks import words_of
from v1lit.data.images import decode_image
from v1lit.data.synthetic import make_example
from v1lit.inference.prompt import AboutRegions, Question, open_picture
from v1lit.inference.rows import open_rows

MOST = 8
"""Examples on the page."""


@dataclass(frozen=True)
class Sample:
    """A picture and what may be asked about it."""

    picture: Image.Image
    question: str


def drawn(count: int = MOST) -> list[Sample]:
    """Scenes of coloured shapes, as the quickstart learns them."""
    made = (make_example(random.Random(seed), id=f"example-{seed}") for seed in range(count))
    return [Sample(decode_image(one.images[0]), _words(one.messages)) for one in made]


def from_rows(location: str) -> list[Sample]:
    """The first rows with one picture of a file or of shards, as of `v1lit generate`.

    Raises ValueError where there are none.
    """
    samples = list(_read(location))
    if not samples:
        raise ValueError(f"{location} has no row with one picture and a question")
    return samples


def _read(location: str) -> Iterator[Sample]:
    rows = open_rows(location)
    found = 0
    for index in range(len(rows)):
        row = rows.read(index)
        if len(row.pictures) == 1 and found < MOST:
            found += 1
            yield Sample(open_picture(row.pictures[0]), _words(row.question))


def _words(question: Question) -> str:
    words = AboutRegions.of(question).words
    return words if isinstance(words, str) else words_of(words[0].content)
