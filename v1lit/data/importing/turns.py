"""Conversations of foreign formats: turns of words, with boxes among them, as one example."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from v1lit.data.example import Example, Message
from v1lit.data.example.marks import IMAGE_MARKER
from v1lit.data.images import EncodedImage
from v1lit.data.importing.format import Reading
from v1lit.data.importing.traces import TraceWriter
from v1lit.grounding.markup import find_answers
from v1lit.grounding.region import Region
from v1lit.grounding.trace import Detect

_NUMBER = r"-?[0-9]{1,6}(?:\.[0-9]{0,12})?"
NUMBER = re.compile(_NUMBER)
_BOX = rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*\]"
TEXT_BOX = re.compile(_BOX)
"""A box among words: four numbers in brackets."""
TEXT_BOXES = re.compile(rf"\[\s*(?:{_BOX}[\s,;]*)+\]|{_BOX}(?:[\s,;]*{_BOX})*")
"""One or several of them, perhaps in brackets of their own."""
LONGEST_QUERY = 200
"""Characters of a question that become the query of a call."""


@dataclass(frozen=True)
class Place:
    """Regions that stand amid the words of a turn, and what is there, if the row says it."""

    regions: tuple[Region, ...]
    label: str | None = None


Part = str | Place
Split = Callable[[str], Iterator[Part]]
"""Words and places of a turn's text, in order."""


def conversation(
    reading: Reading,
    *,
    id: str,
    turns: Sequence[tuple[str, str]],
    images: Sequence[EncodedImage],
    split: Split,
) -> Example:
    """An example of turns as `(role, text)`.

    What the assistant's turns place becomes calls. In other turns a place is a box in words, as fractions of
    its image: somebody's question points at nothing. Images of which no turn says where they are stand at the
    beginning of the first user's turn. Raises ValueError for a row that makes no example.
    """
    if images and not any(IMAGE_MARKER in text for _, text in turns):
        turns = _with_images(turns, len(images))
    trace = TraceWriter()
    messages: list[Message] = []
    asked = ""
    for role, text in turns:
        parts = list(split(text))
        if role == "assistant":
            content = _with_marks(trace, _calls(trace, parts, asked))
        else:
            asked = "".join(part if isinstance(part, str) else _in_words(part, images) for part in parts)
            content = _with_marks(trace, [asked])
        messages.append(Message(role, content))
    answers = find_answers(turns[-1][1]) if turns else []
    return Example(
        id=id,
        images=tuple(images),
        messages=tuple(messages),
        regions=trace.regions,
        answer=answers[-1].strip() if answers else None,
        source=reading.source,
    )


def text_boxes(reading: Reading, images: Sequence[EncodedImage]) -> Split:
    """Splits text at boxes that stand in it as `[x1, y1, x2, y2]`; neighbours are one place."""

    def split(text: str) -> Iterator[Part]:
        at = 0
        for match in TEXT_BOXES.finditer(text) if images else ():
            yield text[at : match.start()]
            boxes = (list(map(float, NUMBER.findall(box))) for box in TEXT_BOX.findall(match[0]))
            yield Place(tuple(reading.region(box, images) for box in boxes))
            at = match.end()
        yield text[at:]

    return split


def words_only(text: str) -> Iterator[Part]:
    """Splits nothing: there are no boxes."""
    yield text


def _with_images(turns: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    changed = list(turns)
    for k, (role, text) in enumerate(changed):
        if role == "user":
            changed[k] = (role, f"{IMAGE_MARKER * count}\n{text}")
            break
    return changed


def _calls(trace: TraceWriter, parts: Sequence[Part], asked: str) -> Iterator[str | Detect]:
    for part in parts:
        if isinstance(part, str):
            yield part
        else:
            yield trace.call(part.label or _query(asked), part.regions)


def _query(asked: str) -> str:
    """What a question asks for: what stands behind its last colon, else all of it."""
    words = " ".join(asked.replace(IMAGE_MARKER, " ").split())
    return (words.rpartition(":")[2].strip() or words or "it")[:LONGEST_QUERY]


def _in_words(place: Place, images: Sequence[EncodedImage]) -> str:
    written = []
    for region in place.regions:
        width, height = images[region.image].size
        x1, y1, x2, y2 = region.box
        fractions = (x1 / width, y1 / height, x2 / width, y2 / height)
        written.append(f"[{', '.join(f'{share:.2f}' for share in fractions)}]")
    return " ".join(written)


def _with_marks(trace: TraceWriter, parts: Iterable[str | Detect]) -> str:
    """The text of a turn, in which `<image>` marks an image, calls are calls, and all else is words."""
    pieces: list[list[str | Detect]] = [[]]
    for part in parts:
        first, *others = part.split(IMAGE_MARKER) if isinstance(part, str) else [part]
        pieces[-1].append(first)
        pieces += [[word] for word in others]
    return IMAGE_MARKER.join(map(trace.write, pieces))
