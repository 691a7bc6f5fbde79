"""The automaton of traces against the parser: what it writes is read, and what is formatted it allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v1lit.grounding.markup import pointer_text
from v1lit.grounding.trace import Detect, DetectedObject, Trace, format_trace, parse_trace
from v1lit.steering.grammar import FREE, START, Needs, State, after, after_pointer, may_end

CHARACTERS = [chr(code) for code in range(32, 127)] + ["é", "猫", "\n"]


def follow(text: str, needs: Needs = FREE, state: State | None = START) -> State | None:
    """The state behind a text, whose pointers are written `<|copy_N|>`."""
    parts = text.split("<|copy_")
    for number, part in enumerate(parts):
        if number:
            state = None if state is None else after_pointer(state)
            part = part.partition("|>")[2]
        for char in part:
            state = None if state is None else after(state, char, needs)
    return state


@st.composite
def walks(draw: st.DrawFn) -> tuple[str, State]:
    """A text that the automaton allows, mostly along its marks."""
    text, state, rest = "", START, ""
    for _ in range(draw(st.integers(0, 150))):
        if not rest and state == START and draw(st.booleans()):
            rest = draw(st.sampled_from(['detect(query="', "<region>[0.1, 0.2, 0.3, 0.4]"]))
        allowed = [char for char in CHARACTERS if after(state, char) is not None]
        if rest and rest[0] in allowed:
            char, rest = rest[0], rest[1:]
        elif after_pointer(state) is not None and state != START and draw(st.booleans()):
            text, state = text + pointer_text(draw(st.integers(0, 9))), after_pointer(state) or START
            continue
        elif allowed:
            char, rest = draw(st.sampled_from(allowed)), ""
        else:
            text, state = text + pointer_text(3), after_pointer(state) or START
            continue
        text, state = text + char, after(state, char) or START
    return text, state


@given(walks())
def test_what_it_allows_is_read_without_a_problem_once_it_may_end(walk: tuple[str, State]) -> None:
    text, state = walk
    if may_end(state):
        parsed = parse_trace(text)
        assert parsed.problems == ()
        assert text.count("<|copy_") >= sum(
            len(o.tokens) for call in parsed.trace.calls for o in call.objects
        )


OBJECTS = st.builds(
    DetectedObject,
    name=st.integers(1, 9999).map(lambda number: f"<obj{number}>"),
    box=st.none() | st.tuples(*[st.integers(0, 100).map(lambda n: n / 100)] * 4),
    tokens=st.lists(st.integers(0, 999), min_size=1, max_size=4).map(tuple),
)
QUERIES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=20).filter(
    lambda text: "detect(" not in text
)


@given(st.lists(st.builds(Detect, QUERIES, st.lists(OBJECTS, max_size=3).map(tuple)) | TEXTS, max_size=4))
def test_every_trace_as_it_is_formatted_is_allowed(parts: list[Detect | str]) -> None:
    try:
        text = format_trace(Trace(tuple(parts)))
    except ValueError:
        return  # text parts that together begin a call
    if "<|copy_" in "".join(part.query for part in parts if isinstance(part, Detect)):
        return  # a query that looks like a pointer
    state = follow(text)
    assert state is not None, text
    assert may_end(state)


@pytest.mark.parametrize(
    "text",
    [
        "detect(x",
        'detect(query="a" ',
        'detect(query="detect(',
        'detect(query="a", objects=["<region></',
        'detect(query="a", objects=["<region>[0.1, 0.2, 0.3, 0.4]<',
        'detect(query="a", objects=["<obj1><region>[0.1, 0.2]',
        'detect(query="a", objects=["<obj>',
        'detect(query="a", objects=[,',
        'detect(query="a", objects=["<obj1>" ',
        "</region>",
        "a <|copy_7",
    ],
)
def test_what_would_not_be_read_is_not_allowed(text: str) -> None:
    state: State | None = START
    for char in text:
        state = None if state is None else after(state, char)
    assert state is None


def test_a_region_without_pointers_may_close_behind_its_box_where_no_pointer_is_possible() -> None:
    text = 'detect(query="a", objects=["<obj1><region>[0.1, 0.2, 0.3, 0.4]</region>"])'
    assert follow(text) is None
    assert follow(text, Needs(can_point=False)) == START


def test_a_needed_look_begins_a_call_and_does_not_end_it_without_a_region() -> None:
    look = Needs(look=True)
    assert follow("so", look) is None
    assert follow('detect(query="a", objects=[]', look) is None
    assert follow('detect(query="a", objects=["<obj1>"', look) is None
    assert follow('detect(query="a", objects=["<obj1><region>', look) is not None
    begun = follow("so dete")
    assert after(begun or START, "c", look) is not None
    assert after(begun or START, "d", look) is None
