"""Penalties, the best of several answers, and options that are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.asked import predictor
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from v1lit.errors import OptionError
from v1lit.grounding.trace import Trace
from v1lit.inference.best import best_of
from v1lit.inference.prediction import Prediction
from v1lit.pointer.repetition import WordRepetition, as_of_words
from v1lit.testing.models import noise

pytestmark = pytest.mark.dependencies

START, IMAGE, STOP = 20, 3, 4
PICTURE = noise((112, 84))


@given(
    st.lists(st.lists(st.integers(0, START + 7), min_size=6, max_size=6), min_size=1, max_size=3),
    st.floats(0.5, 3.0),
    st.integers(0, 99),
)
def test_words_are_penalised_as_in_transformers_and_pointers_images_and_the_end_are_not(
    rows: list[list[int]], penalty: float, seed: int
) -> None:
    ids = torch.tensor(rows)
    scores = torch.randn(len(rows), START + 8, generator=torch.Generator().manual_seed(seed))
    mine = WordRepetition(penalty, START, (IMAGE, STOP))(ids, scores)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores.clone())
    spared = torch.zeros(START + 8, dtype=torch.bool)
    spared[START:] = spared[IMAGE] = spared[STOP] = True
    assert torch.equal(mine[:, spared], scores[:, spared])
    torch.testing.assert_close(mine[:, ~spared], theirs[:, ~spared])


def test_the_penalty_of_a_checkpoints_settings_spares_pointers_too() -> None:
    asked = predictor()
    plain = asked(PICTURE, "Where is it?", max_new_tokens=8)
    assert plain.pointers, "a model that repeats its pointers"
    asked.model.generation_config.repetition_penalty = 50.0
    options = as_of_words({}, asked.model.generation_config, START, IMAGE)
    assert options["repetition_penalty"] == 1.0
    assert isinstance(options["logits_processor"][0], WordRepetition)
    assert asked(PICTURE, "Where is it?", max_new_tokens=8).pointers[0] == plain.pointers[0]
    assert asked(PICTURE, "Where is it?", max_new_tokens=8, repetition_penalty=1.0) == plain
    with pytest.raises(OptionError, match="repetition_penalty is -1; it must be more than 0"):
        asked(PICTURE, "Where?", repetition_penalty=-1)


def said(answer: str | None, score: float | None, text: str = "") -> Prediction:
    return replace(Prediction(text, answer, Trace(()), (), ()), score=score)


def test_the_best_is_the_likeliest_or_the_likeliest_that_most_agree_on() -> None:
    answers = [said("left", -3.0), said("right", -1.0), said(" LEFT ", -2.0), said(None, None, "up")]
    assert best_of(answers, "likelihood") is answers[1]
    assert best_of(answers, "agreement") is answers[2]
    assert best_of(answers, lambda one: len(one.text)) is answers[3]
    with pytest.raises(OptionError, match=r"choose_by is 'votes'; give a function, or:.*likelihood"):
        best_of(answers, "votes")


def test_the_best_of_several_samples_has_the_largest_score() -> None:
    asked = predictor()
    questions = [([PICTURE], "Where is it?"), ([], "What?")]
    torch.manual_seed(0)
    sampled = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 5}
    every = asked.batch(questions, num_return_sequences=3, **sampled)
    torch.manual_seed(0)
    best = asked.batch(questions, best_of=3, **sampled)
    assert len(best) == 2
    for one, own in zip(best, (every[:3], every[3:]), strict=True):
        assert one.score == max(other.score or 0 for other in own)
        assert one in own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best_of": 2, "num_beams": 3}, "num_beams is 3; best_of=2 samples"),
        ({"best_of": 2, "do_sample": False}, "do_sample is False; best_of=2 samples"),
        ({"best_of": 0}, "best_of is 0; give 1 or more"),
        ({"return_dict_in_generate": False}, "return_dict_in_generate is False; a Predictor sets it itself"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        predictor()(PICTURE, "Where?", **options)
