"""Reasoning text with its `detect(...)` calls: one parser, one formatter, inverse to each other.

A call and the ways to write an object in it:

    detect(query="the red ball", objects=["<obj1><|region_1|>", "<obj2>"])
    <obj1><|region_1|>                                                   a region that is named elsewhere
    <obj1><region>[0.10, 0.20, 0.50, 0.60]<|copy_3|><|copy_4|></region>  box in fractions, pointers
    <obj1><region><|copy_3|></region>                                    pointers only
    <obj1>                                                               a name only

In the query a backslash before a quote, before another backslash or before `detect(` makes that stand for
itself; a backslash before anything else is one, so that formulas such as `\\theta` need no care. A `detect(`
without it always begins a call: wherever one goes wrong the next is still found, and reading takes time
proportional to the length. Source of the format: jun297/v1, v1/processor.py, lines 239-262 and 398-424.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

from v1lit.grounding.markup import (
    CALL,
    OBJECT_NAME,
    OBJECT_START,
    POINTER,
    POINTER_LIMIT,
    REGION,
    REGION_END,
    REGION_NAME,
    REGION_START,
    pointer_text,
)

_CALL = re.escape(CALL)
_POINTERS = re.compile(rf"\s*(?:{POINTER.pattern}\s*)*")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})")
_QUERY = re.compile(r'\(\s*query\s*=\s*"')
_NEXT = re.compile(r'[\s,]*["\]]')
_CLOSE = re.compile(r"\s*\)")
_OBJECTS = re.compile(r"\s*,\s*objects\s*=\s*\[")
_STOP = re.compile(rf'\\["\\]|\\{_CALL}|"|{_CALL}')
_BOX_END = re.compile(rf'[\]<"]|{_CALL}')
_GARBAGE_END = re.compile(rf'"|{OBJECT_START}|{re.escape(REGION_START)}|{REGION}|{_CALL}')
_ESCAPED = re.compile(rf'"|{_CALL}|\\(?=[\\"]|{_CALL}|\Z)')
_SPACE = re.compile(r"\s*")
_SEPARATOR = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class DetectedObject:
    """One object of a call: a name, a region, or both."""

    name: str = ""
    """`<obj1>`, or "" where the object has none."""
    region: str | None = None
    """The name of a region such as `<|region_1|>`; then there is neither a box nor are there tokens."""
    box: tuple[float, float, float, float] | None = None
    """Four finite numbers as written: fractions of the image's width and height."""
    tokens: tuple[int, ...] = ()
    """Pointer indices in the order in which they were written."""

    def __post_init__(self) -> None:
        if self.name and not OBJECT_NAME.fullmatch(self.name):
            raise ValueError(f'an object is named like <obj1>, or "" for no name, got {self.name!r}')
        if self.region is not None and not REGION_NAME.fullmatch(self.region):
            raise ValueError(f"a region is named like <|region_1|>, got {self.region!r}")
        if self.box is not None:
            box: Any = self.box
            if len(box) != 4 or not all(isinstance(v, Real) and math.isfinite(v) for v in box):
                raise ValueError(f"the box of an object is four finite numbers, got {box!r}")
            object.__setattr__(self, "box", tuple(map(float, box)))
        object.__setattr__(self, "tokens", tuple(int(token) for token in self.tokens))
        if not all(0 <= token < POINTER_LIMIT for token in self.tokens):
            raise ValueError(f"pointers are 0 or more and below {POINTER_LIMIT}, got {self.tokens}")
        if self.region is not None and (self.box is not None or self.tokens):
            raise ValueError(f"an object has a named region or its own box and pointers, got both: {self}")
        if not (self.placed or self.name):
            raise ValueError("an object has a name, a region or both, got neither")

    @property
    def placed(self) -> bool:
        """Whether it says where the object is, and not its name alone."""
        return self.region is not None or self.box is not None or bool(self.tokens)


@dataclass(frozen=True)
class Detect:
    """One call: what was looked for and the objects, perhaps none, that it returned."""

    query: str
    objects: tuple[DetectedObject, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))


@dataclass(frozen=True)
class Trace:
    """Texts and calls in their order; neighbouring texts are joined and empty ones left out."""

    parts: tuple[str | Detect, ...] = ()

    def __post_init__(self) -> None:
        joined: list[str | Detect] = []
        for part in self.parts:
            if isinstance(part, str) and joined and isinstance(joined[-1], str):
                joined[-1] += part
            elif part != "":
                joined.append(part)
        object.__setattr__(self, "parts", tuple(joined))

    @property
    def calls(self) -> tuple[Detect, ...]:
        """The calls alone."""
        return tuple(part for part in self.parts if isinstance(part, Detect))

    @property
    def text(self) -> str:
        """The text alone, without the calls; `format_trace` writes both."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def objects(self) -> dict[str, DetectedObject]:
        """Objects by name; of several with one name the last counts that says where it is."""
        named: dict[str, DetectedObject] = {}
        for thing in (thing for call in self.calls for thing in call.objects if thing.name):
            if thing.placed or thing.name not in named:
                named[thing.name] = thing
        return named


@dataclass(frozen=True)
class Problem:
    """What the parser could not read: characters `start` to `end - 1` of the text, and why."""

    start: int
    end: int
    reason: str


@dataclass(frozen=True)
class ParsedTrace:
    """A trace and what was wrong in its text; `problems` is empty exactly if every call was well formed."""

    trace: Trace
    problems: tuple[Problem, ...] = ()


def parse_trace(text: str) -> ParsedTrace:
    """Read a trace; never raises, in time proportional to the length of `text`.

    A call that breaks off or holds something unreadable keeps the objects that could be read; what stands
    where it breaks off stays in the text. One that breaks off before its list of objects stays text
    altogether. Either way the problem is reported. Text between calls is kept to the letter.
    """
    return _Parser(text).parse()


def format_trace(trace: Trace) -> str:
    """Write a trace, so that `parse_trace(format_trace(trace)).trace == trace`.

    Raises ValueError where a text part would be read as a call, or begins one that would swallow the next.
    """
    text = "".join(part if isinstance(part, str) else _format_call(part) for part in trace.parts)
    suspicious = any(CALL in part for part in trace.parts if isinstance(part, str))
    if suspicious and parse_trace(text).trace != trace:
        raise ValueError("a text part of the trace holds a detect(...) call; give it as a Detect instead")
    return text


def format_object(thing: DetectedObject) -> str:
    """One object as it stands between the quotes of a call's list."""
    if thing.region is not None:
        return thing.name + thing.region
    if thing.box is None and not thing.tokens:
        return thing.name
    box = "" if thing.box is None else f"[{', '.join(_format_number(v) for v in thing.box)}]"
    return f"{thing.name}{REGION}{box}{''.join(map(pointer_text, thing.tokens))}{REGION_END}"


def _format_call(call: Detect) -> str:
    query = _ESCAPED.sub(r"\\\g<0>", call.query)
    objects = ", ".join(f'"{format_object(thing)}"' for thing in call.objects)
    return f'{CALL}query="{query}", objects=[{objects}])'


def _format_number(value: float) -> str:
    """Two decimals where they say it all, as many as needed elsewhere; never an exponent."""
    short = f"{value:.2f}"
    return short if float(short) == value else format(Decimal(repr(value)), "f")


class _CallError(Exception):
    """The call cannot be read beyond the parser's position."""


class _Parser:
    """Reads from left to right and looks at no character more than a few times: linear in the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.parts: list[str | Detect] = []
        self.problems: list[Problem] = []

    def parse(self) -> ParsedTrace:
        text_from = 0
        while (start := self.text.find(CALL, self.at)) >= 0:
            self.at = start + len(CALL) - 1  # at its bracket
            call = self._call(start)
            if call is not None:
                self.parts += [self.text[text_from:start], call]
                text_from = self.at
        self.parts.append(self.text[text_from:])
        return ParsedTrace(Trace(tuple(self.parts)), tuple(self.problems))

    def _call(self, start: int) -> Detect | None:
        """The call whose bracket stands at the position, or None if not even its query could be read."""
        objects: list[DetectedObject] = []
        query = None
        try:
            self._expect(_QUERY, 'expected query="..."')
            words = self._query()
            self._expect(_OBJECTS, "expected objects=[ after the query")
            query = words
            self._list(objects)
        except _CallError as error:
            self.problems.append(Problem(start, self.at, str(error)))
        return None if query is None else Detect(query, tuple(objects))

    def _query(self) -> str:
        pieces = []
        while True:
            stop = _STOP.search(self.text, self.at)
            pieces.append(self.text[self.at : stop.start() if stop else len(self.text)])
            self.at = stop.start() if stop else len(self.text)
            if stop is None or stop[0] == CALL:
                raise _CallError("the quote of the query is never closed")
            self.at = stop.end()
            if stop[0] == '"':
                return "".join(pieces)
            pieces.append(stop[0][1:])

    def _list(self, objects: list[DetectedObject]) -> None:
        """Strings up to the closing brackets. Where one does not fit, the position stays before it."""
        while (mark := self._match(_NEXT) or "").endswith('"'):
            self._string(objects)
        if not mark:
            raise _CallError('expected an object in quotes or the end of the list, "]"')
        self._expect(_CLOSE, 'expected ")" after the list of objects')

    def _string(self, objects: list[DetectedObject]) -> None:
        """Objects up to the closing quote; what cannot be read among them is reported and passed over."""
        good = self.at
        while True:
            self._match(_SEPARATOR)
            if self._take('"'):
                return
            if self.at >= len(self.text) or self.text.startswith(CALL, self.at):
                self.at = good  # what follows is text; it holds no call, so nothing is read a third time
                raise _CallError("the quote of an object is never closed")
            start = self.at
            thing = self._object()
            if thing is not None:
                objects.append(thing)
                good = self.at
            if self.at == start:
                end = _GARBAGE_END.search(self.text, start + 1)
                self.at = end.start() if end else len(self.text)
                self.problems.append(
                    Problem(start, self.at, "not an object: expected <obj1>, a region or both")
                )

    def _object(self) -> DetectedObject | None:
        name = self._match(OBJECT_NAME) or ""
        after_name = self.at
        self._match(_SPACE)
        region = self._match(REGION_NAME)
        if region is not None:
            return DetectedObject(name, region)
        if self._take(REGION):
            box, tokens = self._box(), self._pointers()
            if box is None and not tokens:
                self.problems.append(
                    Problem(after_name, self.at, "a region without a box and without pointers")
                )
            elif not self._take(REGION_END):
                self.problems.append(Problem(after_name, self.at, f"expected pointers and {REGION_END}"))
            return DetectedObject(name, None, box, tokens) if name or box or tokens else None
        self.at = after_name
        return DetectedObject(name) if name else None

    def _box(self) -> tuple[float, float, float, float] | None:
        self._match(_SPACE)
        start = self.at
        if not self._take("["):
            return None
        numbers: list[float] = []
        while len(numbers) < 4:
            self._match(_SEPARATOR if numbers else _SPACE)
            number = self._match(_NUMBER)
            if number is None:
                break
            numbers.append(float(number))
        self._match(_SPACE)
        closed = self._take("]")
        if not closed:
            end = _BOX_END.search(self.text, self.at)
            self.at = end.start() if end else len(self.text)
            self._take("]")
        if not (closed and len(numbers) == 4 and all(math.isfinite(number) for number in numbers)):
            self.problems.append(Problem(start, self.at, "expected a box of four numbers, [x1, y1, x2, y2]"))
            return None
        return numbers[0], numbers[1], numbers[2], numbers[3]

    def _pointers(self) -> tuple[int, ...]:
        return tuple(map(int, re.findall("[0-9]+", self._match(_POINTERS) or "")))

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        match = pattern.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return match[0]

    def _take(self, literal: str) -> bool:
        if not self.text.startswith(literal, self.at):
            return False
        self.at += len(literal)
        return True

    def _expect(self, pattern: re.Pattern[str], reason: str) -> None:
        if self._match(pattern) is None:
            raise _CallError(reason)
