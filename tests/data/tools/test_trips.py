"""What a run would trip over is said in sentences with its numbers."""

from __future__ import annotations

import pytest

from v1lit.data.config import EncodingConfig, StreamConfig
from v1lit.data.tools.counts import Counts, Extremes, Place
from v1lit.data.tools.sheets import cost_sheet, length_sheet, source_sheet
from v1lit.data.tools.survey import Reasons, Survey
from v1lit.data.tools.trips import stops, what_is_lost

ENCODING = EncodingConfig(max_tokens=100)


def survey() -> Survey:
    """Three examples of 40, 60 and 120 tokens, the last one cut; a fourth is refused, a fifth damaged."""
    return Survey(
        examples=4,
        unusable=2,
        refused=1,
        left_out=6,
        tokens=200,
        learned=50,
        cut_examples=1,
        cut_tokens=20,
        cut_regions=3,
        unseen_examples=1,
        unseen_regions=2,
        lengths=Counts([40, 60, 120]),
        image_tokens=Counts([20, 20, 60]),
        reasons=Reasons([("it is too wide", 1)]),
        extreme_lengths=Extremes([], [Place(120, "s.tar", 7, "long")]),
    )


def test_everything_that_is_lost_is_said_once() -> None:
    said = list(what_is_lost({"here": survey()}, ENCODING))
    assert said == [
        "1 of 4 examples are longer than data.encoding.max_tokens=100: 20 tokens are cut from their ends, "
        "with 3 regions; the longest has 120 ('long' of s.tar)",
        "no image token sees 2 regions of 1 examples; they are written without pointers",
        "1 of 4 examples are refused: 1 x it is too wide",
        "data.map leaves out 6 of 10 examples",
    ]
    assert list(what_is_lost({"here": Survey(examples=4)}, ENCODING)) == []


def test_of_several_sources_each_is_named() -> None:
    said = list(what_is_lost({"one": survey(), "two": Survey(examples=1)}, ENCODING))
    assert len(said) == 4
    assert all(sentence.startswith("one: ") for sentence in said)


@pytest.mark.parametrize(
    ("good", "bad", "options", "words"),
    [
        (4000, 0, {}, None),
        (900, 10, {}, None),
        (900, 11, {}, "11 of 911 examples cannot be used (1.2%), and data.stream.max_bad_fraction is 0.01"),
        (4000, 40, {}, None),
        (4000, 41, {}, "41 of 4,041 examples"),
        (4000, 41, {"max_bad_fraction": 0.5}, None),
        (4000, 1, {"on_bad": "stop"}, "data.stream.on_bad is stop"),
        (0, 3, {}, "nothing to read: not one of 3 examples can be used"),
        (0, 0, {}, "nothing to read: data.map leaves out every example"),
    ],
)
def test_whether_the_run_would_stop_is_said(
    good: int, bad: int, options: dict[str, object], words: str | None
) -> None:
    refused, left_out = bad // 2, 0 if good + bad else 5
    found = Survey(examples=good + refused, refused=refused, unusable=bad, left_out=left_out)
    said = stops({"here": found}, StreamConfig(**options))  # type: ignore[arg-type]
    assert (said is None) == (words is None)
    assert words is None or words in (said or "")


def test_bad_examples_of_all_sources_count_together() -> None:
    half = Survey(examples=100, unusable=6)
    assert stops({"one": half}, StreamConfig()) is None
    assert stops({"one": half, "two": half}, StreamConfig()) is not None


# --- tables ---


def test_lengths_stand_beside_what_is_lost() -> None:
    sheet = length_sheet({"here": survey()}, 100)
    assert sheet.title == "lengths in tokens, of at most 100"
    assert dict(zip(sheet.columns, sheet.rows[0], strict=True)) == {
        "source": "here",
        "examples": "4",
        "median": "60",
        "99 %": "120",
        "longest": "120",
        "cut": "1",
        "refused": "1",
        "unreadable": "1",
        "left out": "6",
        "unseen regions": "2",
    }
    assert len(sheet.rows) == 1


def test_costs_are_weighted_by_what_an_epoch_takes() -> None:
    surveys = {"one": survey(), "two": Survey(tokens=600, lengths=Counts([300, 300])), "val": Survey()}
    sheet = cost_sheet(surveys, {"one": 4.5, "two": 0.5})
    assert sheet.rows == [
        ["one", "200", "66.7", "50.0%", "25.0%", "900", "75.0%"],
        ["two", "600", "300.0", "0.0%", "0.0%", "300", "25.0%"],
        ["val", "0", "0.0", "", "", "", ""],
    ]
    assert cost_sheet(surveys, {}).rows[0] == ["one", "200", "66.7", "50.0%", "25.0%"]


def test_several_sources_are_added_up() -> None:
    sheet = source_sheet({"one": survey(), "two": survey()})
    assert [row[0] for row in sheet.rows] == ["one", "two", "all"]
    assert sheet.rows[2][-4:] == ["400", "50.0%", "25.0%", "100.0%"]
    assert sheet.rows[0][-1] == "50.0%"
