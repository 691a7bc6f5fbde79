"""Answers in parts: together they are the whole, in order, and who leaves ends the work."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers.asked import predictor
from transformers import LogitsProcessor

from v1lit.backbones.config import BackboneConfig
from v1lit.errors import OptionError
from v1lit.inference.predictor import Predictor
from v1lit.inference.streaming import Part, Told, iterate
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.testing.models import noise, processor

pytestmark = pytest.mark.dependencies

PICTURE = noise((112, 84))


def test_parts_add_up_to_the_prediction() -> None:
    asked = predictor()
    parts = list(asked.stream(PICTURE, "Where is it?", max_new_tokens=8))
    whole = asked(PICTURE, "Where is it?", max_new_tokens=8)
    assert parts[-1].prediction == whole
    assert [part.prediction for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert "".join(part.new for part in parts) == whole.text
    assert parts[-1].pointers == whole.pointers
    assert parts[-1].trace == whole.trace
    assert [len(part.text) for part in parts] == sorted(len(part.text) for part in parts)
    assert len(parts) > 4


def test_a_batch_tells_every_row_and_several_answers() -> None:
    asked, parts = predictor(), list[Part]()
    torch.manual_seed(0)
    sampled = {"do_sample": True, "temperature": 3.0, "num_return_sequences": 2}
    questions = [([PICTURE], "Where is it?"), ([], "What is it, please?")]
    made = asked.batch(questions, max_new_tokens=6, on_part=parts.append, **sampled)
    assert {part.row for part in parts} == {0, 1, 2, 3}
    for row, one in enumerate(made):
        own = [part for part in parts if part.row == row]
        assert "".join(part.new for part in own) == one.text
        assert own[-1].prediction is one


def test_half_a_character_waits_for_the_other_half() -> None:
    of, parts = processor("qwen2_5_vl"), list[Part]()
    told = Told(parts.append, of, points=True)
    told.begin([0], [[]])
    ids = of.encode_text("a😀b")
    told.put(torch.tensor([5, 6, 7]))
    for token in [*ids, of.pointer_start + 2, of.stop_token_id, of.pad_token_id, of.pad_token_id]:
        told.put(torch.tensor([token]))
    texts = [part.text for part in parts]
    assert not any("\ufffd" in text for text in texts)
    assert texts[-1] == "a😀b<|copy_2|>"
    assert parts[-1].pointers == ((2,),)


def test_who_leaves_ends_the_work() -> None:
    asked = predictor()
    steps = []

    class Step(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            steps.append(len(steps))
            return scores.index_fill(1, torch.tensor([asked.processor.stop_token_id]), -torch.inf)

    before = threading.active_count()
    for part in asked.stream(PICTURE, "Where?", max_new_tokens=4000, logits_processor=[Step()]):
        assert part.row == 0
        break
    assert threading.active_count() == before
    assert len(steps) < 1000


def test_errors_of_the_work_reach_who_listens() -> None:
    asked = predictor()
    with pytest.raises(ValueError, match="there is no image file"):
        list(asked.stream("missing.png", "Where?"))

    def stumble(part: Part) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asked(PICTURE, "Where?", max_new_tokens=2, on_part=stumble)
    with pytest.raises(OptionError, match="there are no parts to tell"):
        asked(PICTURE, "Where?", num_beams=2, on_part=print)
    with pytest.raises(OptionError, match="there are no parts to tell"):
        asked(PICTURE, "Where?", best_of=2, on_part=print)

    def work(listener: object) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(iterate(work))


def test_answers_that_stop_for_crops_are_told_as_one() -> None:
    torch.manual_seed(0)
    model = PointAndCopyModel.build(BackboneConfig("qwen2_5_vl"), revisit=RevisitConfig("crop")).eval()
    of = processor("qwen2_5_vl")
    script = of.encode_text(
        'detect(query="it", objects=["<obj1><region>[0.10, 0.20, 0.50, 0.60]', special=False
    )
    script += [*of.encode_text("</region>", special=False), *of.encode_text('"]) So', special=False)]

    class Script(LogitsProcessor):
        """The tokens of the script one after the other, whatever crops stand between them."""

        said = 0

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            token = script[self.said] if self.said < len(script) else of.stop_token_id
            self.said += 1
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)

    asked, parts = Predictor(model, of), list[Part]()
    options = {"max_new_tokens": len(script) + 4, "logits_processor": [Script()]}
    made = asked.batch([([PICTURE], "Where?")], on_part=parts.append, **options)[0]
    assert made.text.endswith('</region>"]) So')
    assert "".join(part.new for part in parts) == made.text
    (look,) = made.looks
    assert (look.name, look.query) == ("<obj1>", "it")
    assert look.regions[0].box == pytest.approx((11.2, 16.8, 56.0, 50.4))
    assert made.text[look.start : look.stop] == "[0.10, 0.20, 0.50, 0.60]"
    assert made.score is not None
    assert made.draw().size == PICTURE.size
