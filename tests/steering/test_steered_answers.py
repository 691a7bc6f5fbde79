"""Rules hold however a model is asked, and alone in any `generate` of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers.asked import predictor
from helpers.steered import FAMILY, HERE, PROCESSOR, QUERIES, RULES, START, STOP, THERE, VOCABULARY, runs
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessor

from v1lit.data.encode.encoding import Encoded
from v1lit.errors import OptionError
from v1lit.grounding.region import Region
from v1lit.inference.prediction import Prediction
from v1lit.inference.predictor import Predictor
from v1lit.steering import Connected, GrammarRule, MaxLooks, MaxPointers, Places, Steering, Suppression
from v1lit.steering.places import allowed_tokens
from v1lit.testing.models import noise, prompt

PICTURE = noise((112, 84))


@pytest.fixture(scope="module")
def asked() -> Predictor:
    return predictor(FAMILY)


def check(name: str, said: Sequence[int], given: Encoded) -> None:
    """That the rule of this name holds."""
    RULES[name][1](list(said), given)


# ---------------------------------------------------------------- alone

Make = Callable[[Encoded, int], LogitsProcessor]


def places(inside: list[Any] | None, outside: list[Any]) -> Make:
    def make(given: Encoded, length: int) -> LogitsProcessor:
        regions = None if inside is None else [Region.of(place) for place in inside]
        allowed = allowed_tokens(given.patch_maps, regions, [Region.of(place) for place in outside])
        return Places(torch.tensor([allowed]), START, length)

    return make


ALONE: dict[str, Make] = {
    "inside": places([HERE], []),
    "outside": places(None, [THERE]),
    "no pointing": lambda given, length: MaxLooks(0, START, length),
    "budget": lambda given, length: MaxLooks(2, START, length),
    "pointers of an object": lambda given, length: MaxPointers(3, START, length),
    "connected": lambda given, length: Connected([given.patch_maps], START, length),
    "distinct": lambda given, length: Suppression(START, within_run=True),
    "once": lambda given, length: Suppression(START, within_run=False),
    "grammar": lambda given, length: GrammarRule(VOCABULARY, length),
    "look every": lambda given, length: GrammarRule(VOCABULARY, length, look_every=12),
    "queries": lambda given, length: GrammarRule(VOCABULARY, length, queries=QUERIES),
}


def test_every_rule_is_tried_alone() -> None:
    assert ALONE.keys() == RULES.keys()


GIVEN = prompt(FAMILY, 1, seed=3)


@pytest.fixture(scope="module")
def stranger() -> GPT2LMHeadModel:
    """A stock model that knows nothing of pointers: behind its words it has an id for every image token."""
    size: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 256}
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": STOP, "tie_word_embeddings": False}
    tokens = START + sum(map(len, GIVEN.patch_maps))
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=tokens, **size, **ends))
    model.transformer.wte.weight.data *= 50
    model.lm_head.weight.data[START:] *= 60  # it likes to point, here and there
    return model.eval()


def say(model: GPT2LMHeadModel, *rules: LogitsProcessor, **search: Any) -> list[int]:
    ids = GIVEN.input_ids[None]
    torch.manual_seed(0)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), logits_processor=list(rules), max_new_tokens=40,
        suppress_tokens=[PROCESSOR.image_token_id], pad_token_id=STOP, **search,
    )  # fmt: skip
    said: list[int] = out[0, ids.shape[1] :].tolist()
    return said


SAMPLED = {"do_sample": True, "temperature": 2.0}


@pytest.mark.parametrize("search", [SAMPLED, {"num_beams": 3}], ids=["sampled", "beams"])
@pytest.mark.parametrize("name", ALONE)
def test_a_rule_works_alone_in_generate_of_a_stock_model(
    stranger: GPT2LMHeadModel, name: str, search: dict[str, Any]
) -> None:
    check(name, say(stranger, ALONE[name](GIVEN, len(GIVEN.input_ids)), **search), GIVEN)


def test_without_rules_the_stock_model_breaks_most(stranger: GPT2LMHeadModel) -> None:
    free, broken = say(stranger, **SAMPLED), set()
    for name in RULES:
        try:
            check(name, free, GIVEN)
        except AssertionError:
            broken.add(name)
    assert broken == RULES.keys() - {"grammar", "look every"}, "it writes no marks, and looks all the time"


# ---------------------------------------------------------------- however it is asked


def ids_of(prediction: Prediction) -> list[int]:
    """What was said, as ids: pointers alone, a word between runs."""
    return [token for run in prediction.pointers for token in (0, *(START + patch for patch in run))]


def given_of(asked: Predictor) -> Encoded:
    return asked.prompt(PICTURE, "Where is it?").encoded


LOOKING = ["inside", "outside", "no pointing", "budget", "pointers of an object", "connected", "distinct"]
LOOKING += ["once"]


@pytest.mark.parametrize(
    "how",
    [{"best_of": 2, "temperature": 3.0}, {"num_beams": 2, "num_return_sequences": 2}],
    ids=["best", "beams"],
)
@pytest.mark.parametrize("name", LOOKING)
def test_of_several_answers_each_keeps_to_it(asked: Predictor, name: str, how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    questions = [([PICTURE], "Where is it?"), ([noise((56, 84), 3)], "And here, where is it?")]
    made = asked.batch(questions, 12, steer=RULES[name][0], **how)
    copies = len(made) // len(questions)
    for number, prediction in enumerate(made):
        pictures, question = questions[number // copies]
        check(name, ids_of(prediction), asked.prompt(list(pictures), question).encoded)


@pytest.mark.parametrize("name", [*LOOKING, "grammar", "queries", "look every"])
def test_a_stream_and_a_conversation_keep_to_it(asked: Predictor, name: str) -> None:
    steer = RULES[name][0]
    whole = asked(PICTURE, "Where is it?", 24, steer=steer)
    parts = list(asked.stream(PICTURE, "Where is it?", 24, steer=steer))
    assert parts[-1].prediction == whole
    assert parts[-2].pointers == whole.pointers
    talk = asked.conversation(PICTURE)
    assert talk.ask("Where is it?", max_new_tokens=24, steer=steer) == whole
    start = len(talk.ids)
    second = talk.ask("And now?", max_new_tokens=24, steer=steer)
    assert second.counts is not None
    check(name, talk.ids[-second.counts.generated :], given_of(asked))
    assert len(talk.ids) > start


def test_once_counts_what_a_conversation_and_a_question_have_copied(asked: Predictor) -> None:
    talk = asked.conversation(PICTURE)
    first = talk.ask("Where is it?", max_new_tokens=6, steer=Steering(once=True))
    second = talk.ask("And now?", max_new_tokens=6, steer=Steering(once=True))
    seen = [{patch for run in answer.pointers for patch in run} for answer in (first, second)]
    assert seen[0]
    assert not seen[0] & seen[1]
    about = asked(PICTURE, "<|region_1|>?", 6, regions=[HERE], steer=Steering(once=True))
    assert not {patch for run in about.pointers for patch in run} & set(
        given_of(asked).patch_maps[0].tokens(Region.from_box(HERE))
    )


def test_a_conversation_is_steered_at_an_image_that_joins(asked: Predictor) -> None:
    talk = asked.conversation(PICTURE)
    talk.ask("Where?", max_new_tokens=4)
    there = Region.from_box((0, 0, 20, 20), 1)
    answer = talk.ask("And here?", noise((56, 84), 3), max_new_tokens=8, steer=Steering(inside=[there]))
    first = len(answer.patch_maps[0])
    allowed = {first + token for token in answer.patch_maps[1].tokens(there)}
    assert {patch for run in answer.pointers for patch in run} <= allowed
    assert answer.pointers
    before = list(talk.ids)
    with pytest.raises(ValueError, match="no image token sees something of inside"):
        talk.ask("And there?", steer=Steering(inside=[(900, 900, 901, 901)]))
    assert talk.ids == before


def test_options_as_plain_json() -> None:
    steer = Steering(inside=[(0, 0, 9, 9), Region.from_box((1, 1, 2, 2), 1)], max_looks=1, queries=["it"])
    assert steer.to_json() == {
        "inside": [[0, 0, 9, 9], {"box": [1, 1, 2, 2], "image": 1}],
        "max_looks": 1,
        "queries": ["it"],
    }
    assert Steering().to_json() == {}
    with pytest.raises(OptionError):
        Steering(max_looks=-1)


def test_runs_are_told_apart() -> None:
    assert runs([1, START, START + 2, 3, START + 1]) == [[0, 2], [1]]
