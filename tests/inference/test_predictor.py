"""The predictor: any kind of picture in; text, answer, pointers and regions out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import v1lit
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.example import Message
from v1lit.data.images import ImageError, read_header
from v1lit.grounding.patch_map import PatchMap
from v1lit.grounding.region import Region
from v1lit.grounding.trace import parse_trace
from v1lit.inference.prediction import Prediction
from v1lit.inference.predictor import Predictor
from v1lit.inference.prompt import AboutRegions
from v1lit.inference.reading import pointer_runs, read_answer
from v1lit.pointer.model import PointAndCopyModel

pytestmark = pytest.mark.dependencies


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    model = PointAndCopyModel.build(BackboneConfig("qwen2_5_vl"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)
        model.pointer_head.query.weight.mul_(8.0)
    return Predictor(model, load_processor(BackboneConfig("qwen2_5_vl")))


def read(predictor: Predictor, ids: list[int], maps: tuple[PatchMap, ...] = ()) -> Prediction:
    return read_answer(ids, None, maps, 0, predictor.processor, predictor.model.strategy)


def picture(color: str = "red") -> Image.Image:
    if color == "grey":
        return Image.linear_gradient("L").resize((112, 84)).convert("RGB")
    return Image.new("RGB", (112, 84), color)


def test_every_kind_of_picture_gives_the_same(predictor: Predictor, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    found = {
        predictor(given, "Where?", max_new_tokens=8).text
        for given in (picture(), [picture()], buffer.getvalue(), tmp_path / "a.png", str(tmp_path / "a.png"))
    }
    assert len(found) == 1


def test_a_batch_equals_single_questions(predictor: Predictor) -> None:
    questions = [
        ([picture("red")], "Where?"),
        ([], "Say something long, please."),
        ([picture("grey"), picture("blue")], "Both?"),
    ]
    together = predictor.batch(questions, max_new_tokens=8)
    alone = [predictor.batch([question], max_new_tokens=8)[0] for question in questions]
    assert together == alone
    assert [len(one.patch_maps) for one in together] == [1, 0, 2]


def test_marks_say_where_images_stand(predictor: Predictor) -> None:
    before = predictor(picture("grey"), "Where?", max_new_tokens=8)
    marked = predictor(picture("grey"), "<image>\nWhere?", max_new_tokens=8)
    chat = predictor.batch([([picture("grey")], [Message("user", "<image>\nWhere?")])], max_new_tokens=8)[0]
    assert before == marked == chat
    with pytest.raises(ValueError, match="1 images, but 2 <image> marks"):
        predictor(picture(), "<image>\n<image>\nWhere?")


@pytest.mark.parametrize(
    "question",
    ["What does the tag <image> mean?", "<image>\nIs it <image> or <|region_1|>?", "<i> <\\image>"],
)
def test_a_question_is_somebodys_words(predictor: Predictor, question: str) -> None:
    """Shown by the prompt that it makes: the image before it, and every word in it."""
    (message,) = AboutRegions(question).messages(1)
    prompt = encode_prompt("q", [message], [picture()], predictor.processor, EncodingConfig())
    text = predictor.processor.decode(prompt.input_ids)
    assert question.removeprefix("<image>\n") in text
    assert text.index("<|vision_end|>") < text.index(question.removeprefix("<image>\n"))
    assert len(prompt.patch_maps) == 1


def test_the_last_answer_counts(predictor: Predictor) -> None:
    text = "<think> Put it into <answer>a</answer>. </think><answer>b</answer>"
    assert read(predictor, predictor.processor.encode_text(text)).answer == "b"


def test_pointers_become_regions(predictor: Predictor) -> None:
    ids = [*predictor.processor.encode_text("a"), 3 + predictor.processor.pointer_start]
    prediction = read(predictor, ids, (PatchMap.grid((100, 100), 2, 2),))
    assert prediction.pointers == ((3,),)
    assert prediction.regions == [Region.from_box((50, 50, 100, 100))]
    assert prediction.text.endswith("<|copy_3|>")


def test_the_answer_is_taken_from_its_tags(predictor: Predictor) -> None:
    text = '<think> Look. detect(query="it", objects=["<obj1>"]) </think><answer> left </answer>'
    ids = [*predictor.processor.encode_text(text), predictor.processor.stop_token_id, 5]
    prediction = read(predictor, ids)
    assert prediction.answer == "left"
    assert prediction.trace == parse_trace(text).trace
    assert isinstance(prediction, Prediction)


def test_runs_of_pointers() -> None:
    assert pointer_runs([1, 12, 13, 2, 10, 3], 10) == ((2, 3), (0,))
    assert pointer_runs([], 10) == ()


def test_several_answers(predictor: Predictor) -> None:
    torch.manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": 3, "temperature": 5.0}
    answers = predictor.batch([([picture()], "Where?")], max_new_tokens=8, **options)
    assert len(answers) == 3
    assert len({answer.text for answer in answers}) > 1


def test_a_processor_that_counts_pointers_from_elsewhere_is_refused(predictor: Predictor) -> None:
    start = predictor.model.config.pointer_start
    with pytest.raises(ValueError, match=rf"start at id {start}, but the processor's at {start + 3}"):
        Predictor(predictor.model, load_processor(BackboneConfig("qwen2_5_vl"), pointer_start=start + 3))


def test_the_text_of_a_prediction_shows_no_arrays(predictor: Predictor) -> None:
    assert "array" not in repr(read(predictor, [5], (PatchMap.grid((100, 100), 2, 2),)))


def test_mistakes_are_named(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no image file"):
        predictor(tmp_path / "missing.png", "Where?")
    with pytest.raises(ImageError):
        predictor(b"not an image", "Where?")
    with pytest.raises(ValueError, match=r"not an exported model: it has no config\.json"):
        v1lit.load(tmp_path)


@pytest.mark.parametrize("thing", [np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4), 5])
def test_what_is_no_picture_is_named(predictor: Predictor, thing: Any) -> None:
    with pytest.raises(ValueError, match=f"image file or its path, not a {type(thing).__name__}"):
        predictor(thing, "Where?")
    with pytest.raises(ValueError, match=f"not a {type(thing).__name__}"):
        predictor([thing], "Where?")


def test_a_turned_photo_is_the_same_as_a_file_and_as_a_pillow_image(predictor: Predictor) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture("grey").save(buffer, "JPEG", exif=exif)
    opened = predictor(Image.open(buffer), "Where?", max_new_tokens=2)
    assert opened == predictor(buffer.getvalue(), "Where?", max_new_tokens=2)
    assert opened == predictor(read_header(buffer.getvalue()), "Where?", max_new_tokens=2)
    assert opened.patch_maps[0].image_size == (84, 112)
