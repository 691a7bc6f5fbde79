"""The trace grammar: parser and formatter are inverse, and what is malformed is reported and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v1lit.grounding import Detect, DetectedObject, PatchMap, Problem, Trace, format_trace, parse_trace

names = st.integers(0, 30).map(lambda n: f"<obj{n}>")
placed = st.one_of(
    st.builds(DetectedObject, st.just("") | names, st.integers(0, 30).map(lambda n: f"<|region_{n}|>")),
    st.builds(
        DetectedObject,
        st.just("") | names,
        box=st.tuples(*[st.floats(allow_nan=False, allow_infinity=False) | st.floats(0, 1)] * 4),
        tokens=st.lists(st.integers(0, 10**9 - 1), max_size=4).map(tuple),
    ),
    st.builds(DetectedObject, names, tokens=st.lists(st.integers(0, 999), min_size=1, max_size=4).map(tuple)),
)
pieces = [
    '"',
    "\\",
    "\\\\",
    '\\"',
    "detect(",
    "(",
    ")",
    "[",
    "]",
    "\n",
    ", ",
    "<obj1>",
    "<region>",
    "</region>",
]
pieces += [
    'query="',
    'objects=["',
    "<|copy_3|>",
    "<|region_1|>",
    "[0.1, 0.2,",
    "é",
    "\u202e",
    "\ud800",
    "😀",
    "a",
]
words = st.text() | st.lists(st.sampled_from(pieces), max_size=12).map("".join)
calls = st.builds(Detect, words, st.lists(placed | st.builds(DetectedObject, names), max_size=3).map(tuple))
plain = words.map(lambda text: text.replace("detect(", "look("))
traces = st.lists(calls | plain, max_size=6).map(lambda parts: Trace(tuple(parts)))


@given(traces)
def test_formatting_and_parsing_gives_the_trace_back(trace: Trace) -> None:
    parsed = parse_trace(format_trace(trace))
    assert parsed.trace == trace
    assert parsed.problems == ()


@given(words)
def test_any_text_is_read_and_a_second_reading_changes_nothing(text: str) -> None:
    parsed = parse_trace(text)
    assert parse_trace(format_trace(parsed.trace)).trace == parsed.trace
    assert all(0 <= problem.start <= problem.end <= len(text) for problem in parsed.problems)
    if not parsed.trace.calls:
        assert parsed.trace.text == text


@given(st.lists(calls | words, max_size=6).map(lambda parts: Trace(tuple(parts))))
def test_a_text_that_would_be_read_as_a_call_is_refused_not_changed(trace: Trace) -> None:
    try:
        text = format_trace(trace)
    except ValueError:
        assert "detect(" in trace.text
        return
    assert parse_trace(text).trace == trace


def test_a_call_in_a_text_part_is_refused() -> None:
    with pytest.raises(ValueError, match="give it as a Detect"):
        format_trace(Trace(('so detect(query="a", objects=[])',)))


CALL = Detect(
    "red balls", (DetectedObject("<obj1>", "<|region_1|>"), DetectedObject("<obj2>", "<|region_2|>"))
)


@pytest.mark.parametrize(
    "text",
    [
        'detect(query="red balls", objects=["<obj1><|region_1|>", "<obj2><|region_2|>"])',
        'detect(query="red balls", objects=["<obj1><|region_1|><obj2><|region_2|>"])',
        'detect(query="red balls", objects=["<obj1><|region_1|>, <obj2><|region_2|>"])',
        'detect( query = "red balls" ,\n objects = [ "<obj1> <|region_1|>" ,"<obj2><|region_2|>" , ] )',
    ],
)
def test_layout_does_not_matter(text: str) -> None:
    parsed = parse_trace(f"Look: {text} So 2.")
    assert parsed.trace == Trace(("Look: ", CALL, " So 2."))
    assert parsed.problems == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<obj1><|region_1|>", DetectedObject("<obj1>", "<|region_1|>")),
        ("<|region_1|>", DetectedObject("", "<|region_1|>")),
        ("<obj1>", DetectedObject("<obj1>")),
        ("<obj1><region><|copy_3|></region>", DetectedObject("<obj1>", tokens=(3,))),
        (
            "<obj1><region>[0.10, 0.20, 0.50, 0.60]<|copy_4|><|copy_3|></region>",
            DetectedObject("<obj1>", box=(0.1, 0.2, 0.5, 0.6), tokens=(4, 3)),
        ),
        ("<region>[0.00, 0.00, 1.00, 0.125]</region>", DetectedObject(box=(0, 0, 1, 0.125))),
    ],
)
def test_every_form_of_an_object_is_read_and_written(text: str, found: DetectedObject) -> None:
    call = f'detect(query="x", objects=["{text}"])'
    assert parse_trace(call).trace == Trace((Detect("x", (found,)),))
    assert parse_trace(call).problems == ()
    assert format_trace(Trace((Detect("x", (found,)),))) == call


def test_quotes_and_backslashes_in_a_query_are_escaped() -> None:
    query = 'the "big" \\theta, C:\\'
    text = format_trace(Trace((Detect(query),)))
    assert text == 'detect(query="the \\"big\\" \\theta, C:\\\\", objects=[])'
    assert parse_trace(text).trace.calls[0].query == query
    assert parse_trace('detect(query="\\(AB\\)", objects=[])').trace.calls[0].query == "\\(AB\\)"


GOOD = 'detect(query="b", objects=["<obj2><|region_2|>"])'
FOUND = Detect("b", (DetectedObject("<obj2>", "<|region_2|>"),))


@pytest.mark.parametrize(
    ("text", "parts", "reasons"),
    [
        ("detect() ", ("detect() ", FOUND), ["query"]),
        ("detect(x) ", ("detect(x) ", FOUND), ["query"]),
        ('detect(query="a) ', ('detect(query="a) ', FOUND), ["never closed"]),
        ('detect(query="a") ', ('detect(query="a") ', FOUND), ["objects=["]),
        ('detect(query="a", objects=[', (Detect("a"), FOUND), ["end of the list"]),
        ('detect(query="a", objects=[] and ', (Detect("a"), " and ", FOUND), ['")"']),
        ('detect(query="a", objects=[?]) ', (Detect("a"), "?]) ", FOUND), ["in quotes"]),
        (
            'detect(query="a", objects=["<obj1> so ',
            (Detect("a", (DetectedObject("<obj1>"),)), " so ", FOUND),
            ["not an object", "never closed"],
        ),
        (
            'detect(query="a", objects=["<obj1><region>[0, 0, 1]<|copy_1|></region>"]) ',
            (Detect("a", (DetectedObject("<obj1>", tokens=(1,)),)), " ", FOUND),
            ["four numbers"],
        ),
        (
            'detect(query="a", objects=["<obj1><region>[nan, 0, 1, 1]<|copy_1|></region>"]) ',
            (Detect("a", (DetectedObject("<obj1>", tokens=(1,)),)), " ", FOUND),
            ["four numbers"],
        ),
        (
            'detect(query="a", objects=["a ball", "<obj1><|region_1|>"]) ',
            (Detect("a", (DetectedObject("<obj1>", "<|region_1|>"),)), " ", FOUND),
            ["not an object"],
        ),
    ],
)
def test_a_malformed_call_is_reported_and_the_next_one_is_found(
    text: str, parts: tuple[str | Detect, ...], reasons: list[str]
) -> None:
    parsed = parse_trace(text + GOOD)
    assert parsed.trace == Trace(parts)
    assert len(parsed.problems) == len(reasons)
    assert all(reason in problem.reason for problem, reason in zip(parsed.problems, reasons, strict=True))


def test_a_generation_that_stops_early_keeps_its_pointers() -> None:
    parsed = parse_trace(
        '<think> detect(query="x", objects=["<obj1><region>[0.10, 0.20, 0.30, 0.40]<|copy_3|>'
    )
    assert parsed.trace.calls[0].objects == (DetectedObject("<obj1>", box=(0.1, 0.2, 0.3, 0.4), tokens=(3,)),)
    assert parsed.problems


def test_a_problem_says_where() -> None:
    text = 'one detect(query="a", objects=["junk"]) two'
    assert parse_trace(text).problems == (
        Problem(text.index("junk"), text.index('"])'), "not an object: expected <obj1>, a region or both"),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        "detect(",
        'detect(query="',
        'detect(query="a", objects=["',
        '"',
        "\\",
        "<obj1",
        "<region>[1,",
        "<|copy_1|>",
        " ",
        '", "',
        "<|region_1",
        "[",
        "1",
        "detect(query=" + " " * 50,
        "\\detect(",
    ],
)
@pytest.mark.parametrize("start", ["", 'detect(query="', 'detect(query="a", objects=["<obj1><region>['])
def test_long_hostile_texts_are_read_in_one_go(unit: str, start: str) -> None:
    """A parser that starts over would not fail here, but take so long that the run's time limit tells."""
    parsed = parse_trace(start + unit * (300_000 // len(unit)))
    assert isinstance(parsed.trace, Trace)


def test_the_parser_finds_what_the_published_one_finds_and_more(shared: Path) -> None:
    cases = json.loads((shared / "golden/v1_reference/parse.json").read_text())
    for case in cases:
        width, height = case["image_size"]
        patch_map = PatchMap.grid((width, height), height // 28, width // 28)
        parsed = parse_trace(case["text"])
        for name, expected in case["objects"].items():
            region = patch_map.region(parsed.trace.objects[name].tokens)
            assert region.mask((width, height)).sum() == expected["mask_pixels"]
            queries = [call.query for call in parsed.trace.calls if name in [o.name for o in call.objects]]
            assert queries[-1] == expected["query"]
        if not case["objects"] and "copy" not in case["text"]:
            assert not any(found.placed for found in parsed.trace.objects.values())
        assert bool(parsed.problems) == ("broken" in case["text"])
    several = parse_trace(cases[1]["text"]).trace.objects
    assert {name: found.tokens for name, found in several.items()} == {"<obj1>": (1,), "<obj2>": (9, 10)}


def test_a_later_object_replaces_an_earlier_one_of_its_name_but_a_mention_does_not() -> None:
    first, second, mention = (DetectedObject("<obj1>", tokens=t) for t in ((1,), (2,), ()))
    calls = Detect("a", (first,)), Detect("b", (second,)), Detect("c", (mention,))
    assert Trace(calls).objects == {"<obj1>": second}


def test_texts_side_by_side_are_one_text() -> None:
    assert Trace(("a", "", "b", CALL, "")) == Trace(("ab", CALL))
    assert Trace(("a", CALL, "b")).text == "ab"
    assert Trace(("a", CALL, "b")).calls == (CALL,)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"name": "ball"},
        {"name": "<obj1>", "region": "region_1"},
        {"name": "<obj1>", "region": "<|region_1|>", "tokens": (1,)},
        {"name": "<obj1>", "box": (0, 0, 1)},
        {"name": "<obj1>", "box": (0, 0, 1, float("nan"))},
        {"name": "<obj1>", "tokens": (-1,)},
        {"name": "<obj1>", "tokens": (10**9,)},
    ],
)
def test_an_object_that_cannot_be_written_is_refused(values: dict) -> None:
    with pytest.raises(ValueError, match=r"object|region|pointers"):
        DetectedObject(**values)


def test_every_real_trace_is_read_without_a_problem_and_written_to_the_letter(shared: Path) -> None:
    from pyarrow import parquet

    files = sorted((shared / "data/v1g_real").glob("val-*.parquet"))
    rows = [row for f in files for row in parquet.read_table(f, columns=["conversations"]).to_pylist()]
    assert rows
    for row in rows:
        text = row["conversations"][1]["value"]
        parsed = parse_trace(text)
        assert parsed.problems == ()
        assert format_trace(parsed.trace) == text
