"""A question with the steps that answer it, and how the steps become a trace; the same for every look."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from v1lit.data.synthetic.scene import Item, PixelBox
from v1lit.grounding.markup import answer_text, object_name, region_name
from v1lit.grounding.trace import Detect, DetectedObject, Trace, format_trace

QUESTION_KINDS = ("find", "count", "compare", "relate")

T = TypeVar("T")


@dataclass(frozen=True)
class Search:
    """One `detect` call of a trace: a query, and the items it finds, in the order of the trace."""

    query: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Turn:
    """A question about a scene with its steps and answer."""

    question: str
    steps: tuple[str | Search, ...]
    """Text and searches. In the text, `{0}` stands for the first object that this turn found, `{1}` for the
    second, and so on."""
    answer: str


class NoQuestionError(Exception):
    """A scene allows no question of some kind without ambiguity."""


def choose(rng: random.Random, options: Sequence[T]) -> T:
    """One of `options`. Raises NoQuestionError where there are none."""
    if not options:
        raise NoQuestionError
    return rng.choice(options)


def say(rng: random.Random, sentences: Sequence[str], **words: object) -> str:
    """One of some sentences, with these words in the places that it has for them, such as `{x}`."""
    return rng.choice(sentences).format(**words)


def yes_no(rng: random.Random) -> str:
    """The answer of the next yes/no question, which is made to fit, so that both are as frequent."""
    return rng.choice(("yes", "no"))


def one_search(rng: random.Random, name: str, item: Item) -> tuple[str | Search, ...]:
    """A call that looks for one thing, with the words before it."""
    return say(rng, ["I look for {x}. ", "Let me find {x}. "], x=name), Search(name, (item,))


def two_searches(
    rng: random.Random, a: str, items_a: tuple[Item, ...], b: str, items_b: tuple[Item, ...]
) -> tuple[str | Search, ...]:
    """Two calls one after the other, with the words before each."""
    first, second = rng.choice(
        [
            ("I look for {x}. ", "\nNow {x}. "),
            ("First {x}. ", "\nThen {x}. "),
            ("Let me find {x}. ", "\nNext {x}. "),
        ]
    )
    return first.format(x=a), Search(a, items_a), second.format(x=b), Search(b, items_b)


def write_turn(turn: Turn, first: int = 1) -> tuple[str, dict[str, PixelBox]]:
    """The assistant's text of a turn and the boxes behind its region names.

    Object k of the turn is called `<obj{first + k}>` and stands on `<|region_{first + k}|>`; a conversation
    counts on from turn to turn, so that every name in it is unique.
    """
    items = [item for step in turn.steps if isinstance(step, Search) for item in step.items]
    names = [object_name(first + k) for k in range(len(items))]
    regions = {region_name(first + k): item.box for k, item in enumerate(items)}
    objects = (DetectedObject(name=n, region=r) for n, r in zip(names, regions, strict=True))
    parts: list[str | Detect] = ["<think> "]
    for step in turn.steps:
        if isinstance(step, Search):
            parts.append(Detect(query=step.query, objects=tuple(next(objects) for _ in step.items)))
        else:
            parts.append(step.format(*names))
    parts.append(f" </think>{answer_text(turn.answer)}")
    return format_trace(Trace(tuple(parts))), regions
