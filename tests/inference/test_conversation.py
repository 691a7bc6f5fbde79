"""A second question costs its own tokens, and is answered as if all had been read anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.asked import predictor

from v1lit.backbones import list_backbones
from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.encode.turns import next_turn
from v1lit.data.example import Message
from v1lit.inference.conversation import Conversation
from v1lit.inference.predictor import Predictor
from v1lit.inference.streaming import Part
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.testing.models import noise, processor

pytestmark = pytest.mark.dependencies

NEW = 5
PICTURES = [noise((112, 84)), noise((84, 56), 1)]


def fresh(asked: Predictor, conversation: Conversation, pictures: list[Any]) -> list[int]:
    """What a model says that reads the conversation without its last answer from the start."""
    counts = conversation.answers[-1].counts
    assert counts is not None
    ids = torch.tensor([conversation.ids[: -counts.generated]])
    inputs, _ = asked.processor.images(pictures)
    out = asked.model.generate(
        ids,
        **inputs,
        encode_text=asked.processor.encode_text,
        max_new_tokens=NEW,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=asked.processor.stop_token_id,
        pad_token_id=asked.processor.pad_token_id,
    )
    new: list[int] = out[0, ids.shape[1] :].tolist()
    return new


def generated(conversation: Conversation) -> list[int]:
    counts = conversation.answers[-1].counts
    assert counts is not None
    return conversation.ids[-counts.generated :]


class Counted:
    """Counts the images that a model encodes, and the tokens that its decoder reads."""

    def __init__(self, asked: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoded, self.read = 0, 0
        encode, decoder = asked.model._encode, asked.model.backbone.get_decoder()

        def counting(image_inputs: Any, like: Any) -> Any:
            self.encoded += bool(image_inputs)
            return encode(image_inputs, like)

        def reading(module: Any, args: Any, kwargs: Any) -> None:
            self.read += kwargs["inputs_embeds"].shape[1]

        monkeypatch.setattr(asked.model, "_encode", counting)
        decoder.register_forward_pre_hook(reading, with_kwargs=True)


@pytest.mark.parametrize("family", list_backbones())
def test_later_answers_are_those_of_a_fresh_run(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = predictor(family)
    counted = Counted(asked, monkeypatch)
    conversation = asked.conversation(PICTURES[0])
    read = 0
    for number, question in enumerate(("Where is it?", "And what is beside it?", "Sure?")):
        before, counted.read = len(conversation.ids), 0
        answer = conversation.ask(question, max_new_tokens=NEW)
        read, first = counted.read, number == 0
        new = len(conversation.ids) - before
        assert read == (new - 1 if first else new), "all but the last token is read, and what was left"
        assert generated(conversation) == fresh(asked, conversation, PICTURES[:1])
        assert answer.looks == () or answer.looks[0].regions
    assert counted.encoded == 1 + 3, "once, and by each of the fresh runs"
    assert len(conversation.answers) == 3


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_an_image_may_join_and_the_others_are_not_encoded_again(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = predictor(family)
    counted = Counted(asked, monkeypatch)
    conversation = asked.conversation()
    conversation.ask("Is anybody there?", max_new_tokens=NEW)
    conversation.ask("Where is it?", PICTURES[0], max_new_tokens=NEW)
    answer = conversation.ask("<image>\nAnd here?", PICTURES[1], max_new_tokens=NEW)
    assert counted.encoded == 2
    assert generated(conversation) == fresh(asked, conversation, PICTURES)
    assert len(answer.patch_maps) == len(answer.pictures) == 2
    conversation.ask("So?", max_new_tokens=NEW)
    assert generated(conversation) == fresh(asked, conversation, PICTURES)


@pytest.mark.parametrize(
    "revisit",
    [
        RevisitConfig("point_only"),
        RevisitConfig("multi_patch"),
        RevisitConfig("point_and_copy", {"end": "pointer", "suppress": "trace"}),
        RevisitConfig("replay"),
        RevisitConfig(control="noise_copy"),
    ],
    ids=lambda revisit: f"{revisit.name}-{revisit.control}",
)
def test_so_are_those_of_every_strategy(revisit: RevisitConfig) -> None:
    torch.manual_seed(0)
    model = PointAndCopyModel.build(BackboneConfig("qwen2_5_vl"), revisit=revisit).eval()
    model.pointer_head.query.weight.data.mul_(400.0)
    asked = Predictor(model, processor("qwen2_5_vl"))
    conversation = asked.conversation(PICTURES[0])
    for question in ("Where is it?", "And now?"):
        conversation.ask(question, max_new_tokens=NEW)
        assert generated(conversation) == fresh(asked, conversation, PICTURES[:1])


def test_after_beams_the_text_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = predictor()
    counted = Counted(asked, monkeypatch)
    conversation = asked.conversation(PICTURES[0])
    conversation.ask("Where is it?", max_new_tokens=NEW, num_beams=2)
    before, counted.read = len(conversation.ids), 0
    conversation.ask("Sure?", max_new_tokens=NEW)
    assert counted.read > before
    assert counted.encoded == 1
    assert generated(conversation) == fresh(asked, conversation, PICTURES[:1])


def test_a_conversation_reads_as_in_training() -> None:
    """Its ids are those of the same messages, encoded as a whole."""
    of = processor("qwen2_5_vl")
    words = of.encode_text("It is there.", special=False)
    turns = [
        Message("user", "<image>\nWhere?"),
        Message("assistant", "It is there."),
        Message("user", "Sure?"),
    ]
    whole = encode_prompt("whole", turns, PICTURES[:1], of, EncodingConfig()).input_ids.tolist()
    first = encode_prompt("first", turns[:1], PICTURES[:1], of, EncodingConfig()).input_ids.tolist()
    for ended in (True, False):
        answer = [*words, of.stop_token_id] if ended else words
        assert [*first, *answer, *next_turn(turns[2], ended, [], of, EncodingConfig())] == whole


def test_an_error_leaves_the_conversation_as_it_was() -> None:
    asked = predictor()
    conversation = asked.conversation(PICTURES[0])
    conversation.ask("Where is it?", max_new_tokens=NEW)
    before = list(conversation.ids)

    def break_off(part: Part) -> None:
        if len(part.text) > 12:
            raise KeyError("left")

    with pytest.raises(KeyError, match="left"):
        conversation.ask("And now?", max_new_tokens=NEW, on_part=break_off)
    with pytest.raises(ValueError, match="1 images, but 2 <image> marks"):
        conversation.ask("<image><image> And?", PICTURES[1])
    with pytest.raises(ValueError, match="num_return_sequences"):
        conversation.ask("And?", num_return_sequences=2, do_sample=True)
    assert conversation.ids == before
    conversation.ask("And now?", max_new_tokens=NEW)
    assert generated(conversation) == fresh(asked, conversation, PICTURES[:1])


def test_a_conversation_that_is_too_long_is_refused() -> None:
    asked = predictor()
    conversation = asked.conversation(PICTURES[0], system="Be brief.")
    conversation.ask("Where?", max_new_tokens=2)
    assert "Be brief." in asked.processor.decode(conversation.ids)
    limit = asked.model.config.get_text_config().max_position_embeddings
    with pytest.raises(ValueError, match=f"more than the {limit} that the model can read"):
        conversation.ask("a " * limit)


def test_crops_are_no_conversation() -> None:
    torch.manual_seed(0)
    model = PointAndCopyModel.build(BackboneConfig("qwen2_5_vl"), revisit=RevisitConfig("crop"))
    with pytest.raises(ValueError, match="crop shows parts of images"):
        Predictor(model, processor("qwen2_5_vl")).conversation(PICTURES[0])
