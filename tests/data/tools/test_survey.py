"""A survey counts what examples are, and with rules what a run has of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import encoded
from helpers.shard_cases import make

from v1lit.data.example import Example, Message
from v1lit.data.images import read_header
from v1lit.data.tools.cost import Cost, Refused
from v1lit.data.tools.counts import Place
from v1lit.data.tools.find import ShardFile
from v1lit.data.tools.survey import LONGEST, Survey, Surveyor, area_share, question_start
from v1lit.grounding.region import Region

SHARD = ShardFile("s.tar", source="here")


class ChosenRules:
    """Rules of which a test says everything."""

    def __init__(self, costs: Mapping[str, Cost | Refused | None]) -> None:
        self.costs = costs

    def mapped(self, example: Example, shard: str, index: int) -> tuple[Example | None, Refused | None]:
        assert shard == "s.tar"
        return (None, None) if self.costs[example.id] is None else (example, None)

    def cost(self, example: Example) -> tuple[Cost | None, Refused | None]:
        cost = self.costs[example.id]
        return (cost, None) if isinstance(cost, Cost) else (None, cost)


def survey_of(
    *examples: Example, costs: Mapping[str, Cost | Refused | None] | None = None, first: int = 0
) -> Survey:
    surveyor = Surveyor({} if costs is None else {"here": ChosenRules(costs)})  # type: ignore[dict-item]
    survey = Survey()
    for index, example in enumerate(examples, start=first):
        surveyor.note(survey, SHARD, index, example.key, example)
    return survey


def talk(id: str, *questions: str, source: str = "", regions: int = 0) -> Example:
    """An example about a picture of 40 x 20 pixels; its regions are 10 pixels high, and 4, 8, 12 ... wide."""
    messages = [one for text in questions for one in (Message("user", text), Message("assistant", "Yes."))]
    names = [f"<|region_{number}|>" for number in range(1, regions + 1)]
    messages[0] = Message("user", f"<image>{questions[0]}")
    messages[-1] = Message("assistant", " ".join(["Yes.", *names]))
    boxes = {name: Region.from_box((0, 0, 4 * number, 10)) for number, name in enumerate(names, start=1)}
    image = read_header(encoded((40, 20)))
    return Example(id=id, images=(image,), messages=tuple(messages), regions=boxes, source=source)


THREE = (
    talk("a", "How many cups?", "Which  colour\nis it?", source="one", regions=2),
    talk("b", "how MANY dogs are there?", source="two"),
    talk("c", "Where?", source="one", regions=1),
)


def test_examples_are_counted_by_what_is_in_them() -> None:
    survey = survey_of(*THREE)
    assert (survey.examples, survey.turns, survey.images, survey.regions) == (3, 4, 3, 3)
    assert survey.images_each == {1: 3}
    assert survey.regions_each == {0: 1, 1: 1, 2: 1}
    assert survey.areas == {500: 2, 1000: 1}, "4 x 10 and 8 x 10 of 800 pixels, in ten-thousandths"
    assert survey.questions.counts == {"how many": 2, "which colour": 1, "where": 1}
    assert survey.sources.counts == {"one": 2, "two": 1}
    assert not survey.measured


def test_the_extremes_are_places_with_their_values() -> None:
    survey = survey_of(*THREE)
    assert survey.extreme_regions.largest[:2] == [Place(2, "s.tar", 0, "a"), Place(1, "s.tar", 2, "c")]
    assert survey.extreme_areas.smallest[0] == Place(0.05, "s.tar", 0, "a", "<|region_1|>")
    assert survey.extreme_areas.largest[0] == Place(0.1, "s.tar", 0, "a", "<|region_2|>")


def test_an_example_without_a_source_is_counted_as_such() -> None:
    assert survey_of(make("x", images=0)).sources.counts == {"(none)": 1}


COSTS: dict[str, Cost | Refused | None] = {
    "a": Cost(tokens=50, whole=60, image_tokens=20, learned=5, unseen=("<|region_1|>",), cut_regions=1),
    "b": Refused("length", "it is 7 long"),
    "c": Cost(tokens=30, whole=30, image_tokens=10, learned=9),
    "d": None,
    "e": Refused("length", "it is 8 long"),
}


def test_with_rules_tokens_are_added_up_and_what_is_lost_is_noted() -> None:
    survey = survey_of(*THREE, talk("d", "Out?"), talk("e", "Too long?"), costs=COSTS)
    assert (survey.examples, survey.left_out, survey.refused) == (4, 1, 2)
    assert (survey.tokens, survey.learned, survey.image_tokens.sum) == (80, 14, 30)
    assert survey.lengths == {60: 1, 30: 1}
    assert (survey.cut_examples, survey.cut_tokens, survey.cut_regions) == (1, 10, 1)
    assert (survey.unseen_examples, survey.unseen_regions) == (1, 1)
    assert survey.reasons.counted == [("it is 7 long", 2)], "they differ in a number"
    assert survey.sources.counts == {"one": 2}, "what no run has is not counted"
    assert [(note.kind, note.key) for note in survey.notes] == [("cut", "a"), ("unseen", "a")]
    assert survey.notes[0].reason == "it has 60 tokens; the last 10 are cut, with 1 regions"
    assert survey.extreme_lengths.largest[0] == Place(60, "s.tar", 0, "a")


def test_why_an_example_is_refused_is_said() -> None:
    surveyor = Surveyor({"here": ChosenRules(COSTS)})  # type: ignore[dict-item]
    assert surveyor.note(Survey(), SHARD, 0, "b", THREE[1]) == COSTS["b"]
    assert surveyor.note(Survey(), SHARD, 0, "c", THREE[2]) is None


def test_shards_of_another_source_have_other_rules() -> None:
    surveyor, survey = Surveyor({"elsewhere": ChosenRules({})}), Survey()  # type: ignore[dict-item]
    surveyor.note(survey, SHARD, 0, "a", THREE[0])
    assert (survey.examples, survey.measured) == (1, False)


def test_a_length_without_end_does_not_make_a_table_without_end() -> None:
    costs = {"a": Cost(tokens=9, whole=10**9, image_tokens=0, learned=1)}
    survey = survey_of(THREE[0], costs=costs)
    assert survey.lengths == {LONGEST: 1}
    assert survey.extreme_lengths.largest[0].value == 10**9


def test_surveys_of_parts_add_up_to_that_of_the_whole() -> None:
    whole = survey_of(*THREE, costs=COSTS)
    parts, rest = survey_of(THREE[0], costs=COSTS), survey_of(*THREE[1:], costs=COSTS, first=1)
    notes = [*parts.notes, *rest.notes]
    parts.update(rest)
    assert notes == whole.notes
    whole.notes = parts.notes
    assert parts == whole


@pytest.mark.parametrize(
    ("content", "start"),
    [
        ("<image>\nHow many <|region_1|> cups?", "how many"),
        ("<|region_1|> is what?", "is what"),
        ("What's  that", "what's that"),
        ("<image>", "(no words)"),
        ("你好吗?", "你好吗"),
        ("<b>Bold</b> words", "b bold"),
    ],
)
def test_the_kind_of_a_question_is_its_first_two_words(content: str, start: str) -> None:
    assert question_start(content) == start


@pytest.mark.parametrize(
    ("region", "pixels"),
    [
        (Region.from_box((1, 2, 30, 20)), 29 * 18),
        (Region.from_box((0, 0, 0.5, 32)), 16),
        (Region.from_boxes([(0, 0, 10, 10), (5, 0, 15, 10)]), 150),
        (Region.from_polygon([(0, 0), (10, 0), (10, 10), (0, 10)]), 100),
        (Region.from_mask(np.arange(40 * 32).reshape(32, 40) < 7), 7),
    ],
)
def test_the_area_of_a_region_is_that_of_its_union(region: Region, pixels: float) -> None:
    assert area_share(region, (40, 32)) == pytest.approx(pixels / (40 * 32))


def test_the_shard_of_a_location_is_counted_with_it(tmp_path: Path) -> None:
    from helpers.shard_cases import write

    from v1lit.data.tools.check import check

    one, two = (str(write(tmp_path / name, ids)) for name, ids in (("one", ["a", "b"]), ("two", ["c"])))
    report = check([one, two, f"{one}/shard-000000.tar"], workers=1, surveyor=Surveyor())
    assert {name: survey.examples for name, survey in report.surveys.items()} == {
        one: 2,
        two: 1,
        f"{one}/shard-000000.tar": 0,
    }
    assert check([one], workers=1).surveys == {}
