"""What the page is made of, without gradio or a browser."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.asked import predictor, write_rows
from helpers.html_page import Page

from v1lit.demo.asking import Ask, answer, check_ask, read_boxes
from v1lit.demo.examples import drawn, from_rows
from v1lit.demo.heat import Steps
from v1lit.demo.limits import Deadline, DemoLimits
from v1lit.errors import OptionError
from v1lit.grounding.patch_map import PatchMap
from v1lit.inference.page_parts import PageContent
from v1lit.inference.reading import read_answer
from v1lit.steering import Steering
from v1lit.testing.models import noise

ASK = Ask(noise((84, 56)), "Where is it?", max_new_tokens=12)


def test_an_answer_grows_and_ends_as_the_predictors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v1lit.demo.asking.SHOWN_EVERY", 0)
    one = predictor()
    parts = list(answer(one, ASK, Deadline(60)))
    whole = one(ASK.picture, ASK.question, max_new_tokens=12, distributions=True)
    assert parts[-1] == whole
    assert parts[-1].distributions is not None
    assert np.array_equal(parts[-1].distributions, whole.distributions)
    assert len(whole.ids) == len(whole.distributions)  # type: ignore[arg-type]
    assert len(parts) > 3
    texts = [part.text for part in parts]
    assert all(later.startswith(former) for former, later in pairwise(texts))
    assert all(part.patch_maps == whole.patch_maps and part.question == ASK.question for part in parts)
    assert {part.seconds for part in parts[:-1]} == {None}


def test_what_is_read_of_a_parts_ids_is_its_text() -> None:
    one = predictor()
    for part in one.stream(ASK.picture, ASK.question, max_new_tokens=12):
        maps = (PatchMap.grid((84, 56), 2, 3),)
        read = read_answer(part.ids, None, maps, 1, one.processor, one.model.strategy)
        assert (read.text, read.pointers) == (part.text, part.pointers)


def test_samples_are_repeated_by_their_seed() -> None:
    one, hot = predictor(), replace(ASK, temperature=1.5)
    first, again, other = (
        [*answer(one, replace(hot, seed=seed), Deadline(60))][-1].text for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_deadline_ends_an_answer_with_all_that_is_known_of_it() -> None:
    late, seen = Deadline(0), Deadline(60)
    made = [*answer(predictor(), ASK, late)][-1]
    assert made.counts is not None
    assert made.counts.generated == len(made.ids) == 1
    assert late.reason == "ended after 0 seconds, the limit"
    seen.stop()
    assert torch.equal(seen(torch.zeros(2, 3), None), torch.tensor([True, True]))
    assert seen.reason == "stopped"
    assert not Deadline(60)(torch.zeros(2, 3), None).any()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"question": " \n"}, "there is no question"),
        ({"question": "x" * 4001}, "the question has 4001 characters; 4000 is the limit here"),
        ({"max_new_tokens": 1025}, "an answer has 1 to 1024 tokens here, not 1025"),
    ],
)
def test_what_is_over_the_limits_is_refused(change: dict[str, object], why: str) -> None:
    check_ask(ASK, DemoLimits())
    with pytest.raises(ValueError, match=why):
        check_ask(replace(ASK, **change), DemoLimits())  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"demo\.waiting is 0; give 1 or more"):
        DemoLimits(waiting=0)


def test_boxes_as_they_are_typed() -> None:
    assert read_boxes("here", "") == []
    assert read_boxes("here", "0, 0, 10.5, 20\n\n [1 2 3 4]\n") == [(0, 0, 10.5, 20), (1, 2, 3, 4)]
    for text, line in (("1 2 3", 1), ("1,2,3,4\nleft half", 2), ("1 2 3 4 5", 1)):
        with pytest.raises(ValueError, match=f"here, line {line}: a box is x1, y1, x2, y2 in pixels"):
            read_boxes("here", text)


def test_heat_maps_show_the_patches_of_a_step_and_escape_its_text() -> None:
    rng = np.random.default_rng(0)
    maps = (PatchMap.grid((60, 40), 2, 3), PatchMap.blank((10, 10), 1))
    likely = rng.dirichlet(np.ones(7), size=3).astype(np.float32)
    likely[1] = [0, 0, 0.75, 0.25, 0, 0, 0]
    shown = PageContent("q", "t", None, (), maps, ["data:,", "data:,"])
    steps = Steps(shown, ["one ", "<b>", "three"], likely)
    page = Page(steps.render(2))
    opacities = [own["fill-opacity"] for tag, own in page.elements if tag == "rect"]
    assert opacities == ["1.000", "0.333"]
    assert [own["x"] for tag, own in page.elements if tag == "rect"] == ["40", "0"]
    assert "one <b>" in page.text
    assert (
        "Step 2 of 3: likeliest patch 2, 75.0% of what points; entropy 0.56 of at most 1.95 nats" in page.text
    )
    assert steps.render(0) == steps.render(1)
    assert steps.render(9) == steps.render(3)


def test_examples_are_drawn_or_rows_of_ones_own(tmp_path: Path) -> None:
    assert [one.question for one in drawn(3)] == [one.question for one in drawn(8)[:3]]
    assert all("<image>" not in one.question and one.picture.size == (168, 168) for one in drawn(8))
    rows = [{"image": "a.png", "question": f"What is {n}?"} for n in range(12)]
    rows.insert(0, {"images": ["a.png", "b.png"], "question": "Both?"})
    found = from_rows(str(write_rows(tmp_path, rows)))
    assert [one.question for one in found] == [f"What is {n}?" for n in range(8)]
    assert found[0].picture.size == (112, 84)
    with pytest.raises(ValueError, match="has no row with one picture and a question"):
        from_rows(str(write_rows(tmp_path, rows[:1])))


def test_options_become_those_of_the_predictor() -> None:
    assert ASK.generate == {"repetition_penalty": 1.0}
    assert replace(ASK, temperature=0.5).generate["do_sample"] is True
    steered = replace(ASK, steer=Steering(points=False))
    assert [*answer(predictor(), steered, Deadline(60))][-1].looks == ()
