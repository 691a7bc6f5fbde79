"""The format of traces as an automaton over characters, whose pointers are letters of their own.

    trace   = (text | call | region)*
    call    = 'detect(query="' query '", objects=[' [object (', ' object)*] '])'
    object  = '"' '<obj' number '>' [region] '"' | '"' region '"'
    region  = '<region>' [box] pointer* '</region>'
    box     = '[' number ', ' number ', ' number ', ' number ']'

Every trace of it is read by `parse_trace` without a problem. It is a part of what that reads: the spaces are
those of `format_trace`, and a string of the list holds one object.
"""

from __future__ import annotations

from typing import NamedTuple

from v1lit.grounding.markup import CALL, OBJECT_START, POINTER_BEGIN, REGION, REGION_END

QUERY_OPEN, QUERY_END = 'query="', ", objects=["
DIGITS = 4
"""Of a number, before and behind its point, and of an object's name at most."""
_TEXT_MARKS = (CALL, REGION, REGION_END, POINTER_BEGIN)
_QUERY_MARKS = (CALL, POINTER_BEGIN)


class State(NamedTuple):
    """Where in a trace the next character stands."""

    kind: str = "text"
    """`text`, `mark`, `query`, `list` (before its first object), `object` (behind its first quote), `name`,
    `named`, `listed` (behind its last quote), `region`, `number` or `closed`."""
    seen: str = ""
    """What has been written of a mark that may have begun, or of a number; of a `mark` what is left of it."""
    then: str = ""
    """Of a `mark`, the kind behind it."""
    call: bool = False
    """Whether a region stands in a call."""
    boxed: bool = False
    """Whether a region has its box."""
    pointed: bool = False
    """Whether a region has a pointer."""
    number: int = 0
    """Which number of a box is written."""


class Needs(NamedTuple):
    """What a trace has to do next, beside keeping to the format."""

    look: bool = False
    """A call has to begin, or the one that has begun needs an object with a region."""
    close: bool = False
    """The query has to end."""
    can_point: bool = True
    """Whether any pointer may follow, so that a region without a box is not opened in vain."""


START = State()
FREE = Needs()


def after_pointer(state: State) -> State | None:
    """The state behind a pointer; None where there cannot be one."""
    if state.kind == "region":
        return state._replace(pointed=True)
    # Put in behind a call by a strategy: it has its own rule for that.
    return state if state == START else None


def after(state: State, char: str, needs: Needs = FREE) -> State | None:
    """The state behind a character; None where there cannot be such a one."""
    return _STEPS[state.kind](state, char, needs)


def may_end(state: State) -> bool:
    """Whether a trace is whole."""
    return state.kind == "text"


def _text(state: State, char: str, needs: Needs) -> State | None:
    if needs.look:
        seen = state.seen if CALL.startswith(state.seen) else ""
        if char != CALL[len(seen)]:
            return None
        return _mark(QUERY_OPEN, "query") if seen + char == CALL else State(seen=seen + char)
    seen = state.seen + char
    if seen.endswith(CALL):
        return _mark(QUERY_OPEN, "query")
    if seen.endswith(REGION):
        return State("region")
    return None if seen.endswith((REGION_END, POINTER_BEGIN)) else State(seen=_begun(seen, _TEXT_MARKS))


def _one_of_mark(state: State, char: str, needs: Needs) -> State | None:
    if char != state.seen[0]:
        return None
    return state._replace(seen=state.seen[1:]) if len(state.seen) > 1 else _enter(state)


def _query(state: State, char: str, needs: Needs) -> State | None:
    escaped = state.seen == "\\"
    if needs.close and not escaped:
        return _mark(QUERY_END, "list") if char == '"' else None
    if escaped:
        return State("query", _begun(char, (POINTER_BEGIN,)))  # an escaped call is none
    if char == '"':
        return _mark(QUERY_END, "list")
    if char == "\\":
        return State("query", "\\")
    seen = state.seen + char
    return None if seen.endswith(_QUERY_MARKS) else State("query", _begun(seen, _QUERY_MARKS))


def _list(state: State, char: str, needs: Needs) -> State | None:
    if char == '"':
        return State("object")
    return _mark(")", "text") if char == "]" and not needs.look else None


def _object(state: State, char: str, needs: Needs) -> State | None:
    seen = state.seen + char
    if seen == OBJECT_START:
        return State("name")
    if seen == REGION:
        return State("region", call=True)
    return State("object", seen) if any(mark.startswith(seen) for mark in (OBJECT_START, REGION)) else None


def _name(state: State, char: str, needs: Needs) -> State | None:
    if _is_digit(char) and len(state.seen) < DIGITS:
        return State("name", state.seen + "0")
    return State("named") if char == ">" and state.seen else None


def _named(state: State, char: str, needs: Needs) -> State | None:
    if char == '"':
        return None if needs.look else State("listed")
    return _mark(REGION[1:], "region", call=True) if char == REGION[0] else None


def _listed(state: State, char: str, needs: Needs) -> State | None:
    if char == ",":
        return _mark(' "', "object")
    return _mark(")", "text") if char == "]" and not needs.look else None


def _region(state: State, char: str, needs: Needs) -> State | None:
    if char == "[" and not (state.boxed or state.pointed):
        return State("number", call=state.call)
    whole = state.pointed or (state.boxed and not needs.can_point)
    if char == REGION_END[0] and whole:
        return _mark(REGION_END[1:], "closed" if state.call else "text", call=state.call)
    return None


def _number(state: State, char: str, needs: Needs) -> State | None:
    whole, point, part = state.seen.partition(".")
    if _is_digit(char) and len(part if point else whole) < DIGITS:
        return state._replace(seen=state.seen + "0")
    if char == "." and whole and not point:
        return state._replace(seen=state.seen + ".")
    if not whole or (point and not part):
        return None
    if char == "," and state.number < 3:
        return _mark(" ", "number", call=state.call, number=state.number + 1)
    return State("region", call=state.call, boxed=True) if char == "]" and state.number == 3 else None


def _closed(state: State, char: str, needs: Needs) -> State | None:
    return State("listed") if char == '"' else None


_STEPS = {
    "text": _text,
    "mark": _one_of_mark,
    "query": _query,
    "list": _list,
    "object": _object,
    "name": _name,
    "named": _named,
    "listed": _listed,
    "region": _region,
    "number": _number,
    "closed": _closed,
}


def _mark(rest: str, then: str, call: bool = False, number: int = 0) -> State:
    """What is left of a mark, all of which has to follow."""
    return State("mark", rest, then, call=call, number=number)


def _enter(mark: State) -> State:
    """The state behind the last character of a mark."""
    return State(mark.then, call=mark.call, number=mark.number)


def _begun(seen: str, marks: tuple[str, ...]) -> str:
    """The longest end of `seen` with which one of the marks begins."""
    ends = (seen[start:] for start in range(len(seen)))
    return next((end for end in ends if any(mark.startswith(end) for mark in marks)), "")


def _is_digit(char: str) -> bool:
    return "0" <= char <= "9"
