"""`crop`: the pixels of a region are encoded again, in training and at decoding alike."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pictures import encoded as picture_file
from torch import Tensor
from transformers import LogitsProcessor

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.backbones.registry import list_backbones
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.batch import collate
from v1lit.data.encode.encoding import Encoded, encode, image_ids
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.example import Example, Message
from v1lit.data.images import decode_image, read_header
from v1lit.data.lengths.length import measure
from v1lit.errors import OptionError
from v1lit.grounding.patch_map import PatchMap
from v1lit.grounding.region import Region
from v1lit.inference.crops import Answer, generate_with_crops
from v1lit.inference.predictor import Predictor
from v1lit.labels import IGNORE
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.revisit.crop import Crop, widened
from v1lit.testing.models import inputs

FAMILIES = list_backbones()
BOXES = {"<|region_1|>": (20, 30, 100, 90), "<|region_2|>": (0, 0, 4, 4)}
REGIONS = ("<region>[0.12, 0.27, 0.60, 0.80]", "<region>[0.00, 0.00, 0.02, 0.04]")
TEXT = "I look at <|region_1|> and at <|region_2|> too."


@lru_cache
def processor(family: str = "qwen2_5_vl", strategy: Crop | None = None) -> Processor:
    return load_processor(BackboneConfig(family), revisit=strategy or Crop())


def example(images: int = 1, text: str = TEXT, size: tuple[int, int] = (168, 112)) -> Example:
    return Example(
        id="one",
        images=tuple(read_header(picture_file((size[0], size[1] + 28 * k))) for k in range(images)),
        messages=(Message("user", "<image>\n" * images + "Where?"), Message("assistant", text)),
        regions={name: Region.from_box(box) for name, box in BOXES.items() if name in text},
    )


def written(encoded: Encoded, of: Processor) -> str:
    """The answer, where an image is written `{tokens}`."""
    start = int((encoded.labels != IGNORE).nonzero()[0])
    text = of.decode(encoded.input_ids[start:].tolist())
    before, after = (of.decode(of.encode_text(mark)) for mark in of.backbone.chat.image)
    token = of.backbone.chat.image_token
    for patch_map in encoded.patch_maps[1:]:
        text = text.replace(before + token * len(patch_map) + after, f"{{{len(patch_map)}}}", 1)
    return text


def test_a_crop_follows_every_box() -> None:
    encoded = encode(example(), processor(), EncodingConfig())
    found = written(encoded, processor())
    counts = [len(patch_map) for patch_map in encoded.patch_maps[1:]]
    assert [patch_map.image_size for patch_map in encoded.patch_maps[1:]] == [(151, 112), (112, 112)]
    assert found.startswith(
        f"I look at {REGIONS[0]}</region>{{{counts[0]}}} and at {REGIONS[1]}</region>{{{counts[1]}}} too."
    )


@pytest.mark.parametrize("supervise", ["assistant", "all"])
def test_no_token_of_a_crop_is_learned(supervise: str) -> None:
    of = processor()
    encoded = encode(example(), of, EncodingConfig(supervise=supervise))  # type: ignore[arg-type]
    marks = torch.tensor(image_ids(of, of.patch_map((28, 28))))
    assert (encoded.labels[torch.isin(encoded.input_ids, marks)] == IGNORE).all()
    assert encoded.regions == ()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("images", [1, 2])
@torch.no_grad()
def test_image_tokens_and_pixels_of_a_truncated_example_fit(family: str, images: int) -> None:
    """At every length: the measured one, with as many image tokens as the vision tower makes."""
    of, whole = processor(family), encode(example(images), processor(family), EncodingConfig())
    ends = [int(end) for end in (whole.input_ids == of.image_token_id).nonzero()[:, 0]]
    for limit in (len(whole.input_ids), ends[-1] + 1, ends[-1] - 1, len(whole.input_ids) - 40):
        config = EncodingConfig(max_tokens=limit)
        encoded = encode(example(images), of, config)
        length = measure(example(images), of, config)
        assert length.tokens == len(encoded.input_ids) <= limit
        assert length.images == len(encoded.patch_maps)
        assert length.image_tokens == int((encoded.input_ids == of.image_token_id).sum())
        assert length.image_tokens == sum(map(len, encoded.patch_maps))
        loss = model(family)(**inputs(collate([encoded], 0)), labels=encoded.labels[None]).loss
        assert bool(loss.isfinite())
    assert len(encode(example(images), of, EncodingConfig(max_tokens=ends[-1] - 1)).patch_maps) == images + 1


def test_images_are_in_the_order_of_their_tokens() -> None:
    """An image of a later turn comes after the crops of an earlier one."""
    of = processor()
    turns = (
        Message("user", "<image>\nWhere?"),
        Message("assistant", "At <|region_1|>."),
        Message("user", "<image>\nAnd here?"),
        Message("assistant", "No."),
    )
    two = example(images=2, text="At <|region_1|>.")
    encoded = encode(
        Example(id="t", images=two.images, messages=turns, regions=two.regions), of, EncodingConfig()
    )
    assert [patch_map.image_size for patch_map in encoded.patch_maps] == [(168, 112), (151, 112), (168, 140)]
    grids = encoded.image_inputs["image_grid_thw"].prod(1) // 4
    assert grids.tolist() == [len(patch_map) for patch_map in encoded.patch_maps]


@pytest.mark.parametrize("cap", [4, 9, 16])
def test_a_crop_has_no_more_tokens_than_its_cap(cap: int) -> None:
    of = processor(strategy=Crop(max_tokens=cap))
    maps = encode(example(), of, EncodingConfig()).patch_maps
    assert [0 < len(patch_map) <= cap for patch_map in maps[1:]] == [True, True]


def test_a_cap_that_no_crop_can_keep_is_refused() -> None:
    of = processor("llava", Crop(max_tokens=1))
    with pytest.raises(OptionError, match=r"max_tokens is 1; the smallest crop has \d+ tokens"):
        encode(example(), of, EncodingConfig())


MAP = PatchMap.grid((168, 112), 4, 6)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((20, 30, 100, 90), (20, 30, 100, 90)),
        ((20.4, 30.4, 99.5, 89.5), (20, 30, 100, 90)),
        ((0, 0, 4, 4), (0, 0, 28, 28)),
        ((166, 110, 168, 112), (140, 84, 168, 112)),
        ((50, 50, 50, 50), (36, 36, 64, 64)),
    ],
)
def test_a_box_is_widened_to_a_patch_inside_the_image(
    box: tuple[float, float, float, float], expected: tuple[int, ...]
) -> None:
    assert widened(box, MAP) == expected


def test_a_slender_box_is_widened_where_the_image_has_room() -> None:
    wide = PatchMap.grid((1000, 1000), 100, 100)
    assert widened((0, 500, 1000, 502), wide) == (0, 438, 1000, 564)


@pytest.mark.parametrize(
    "text",
    [
        "<region></region>",
        "<region>[0.1, 0.2, 0.3]</region>",
        "<region>[0.5, 0.2, 0.3, 0.4]</region>",
        "<region>[0.1, 0.2, 0.3, 1.4]</region>",
        "<region>[0.1, 0.2, 0.3, -1]</region>",
        "<region>[0.1, 0.2, 0.3, nan]</region>",
        "<region>[0.1, 0.2, 0.3, 0.4] of image 2</region>",
        "<region>[0.1, 0.2, 0.3, 0.4] of image 0</region>",
        "<region>[0.1, 0.2, 0.3, 0.4]</region> then",
        "[0.1, 0.2, 0.3, 0.4]</region>",
    ],
)
def test_a_malformed_box_cuts_nothing_out(text: str) -> None:
    assert Crop().cut(text, [MAP], processor().patch_map) is None


@pytest.mark.parametrize(
    "strategy", [Crop(), Crop("pixels"), Crop("bins", bins=100), Crop("bins", bins=1000)]
)
def test_every_box_of_an_image_is_read_back(strategy: Crop) -> None:
    draw = np.random.default_rng(0)
    boxes = [(0.0, 0.0, 168.0, 112.0)]
    for _ in range(50):
        (x1, x2), (y1, y2) = np.sort(draw.uniform(0, 168, 2)), np.sort(draw.uniform(0, 112, 2))
        boxes.append((x1, y1, x2, y2))
    for box in boxes:
        cut = strategy.cut(f"<region>{strategy.text(box, (168, 112))}</region>", [MAP], processor().patch_map)
        assert cut is not None
        assert cut.box[0] <= box[0] + 2.7
        assert cut.box[1] <= box[1] + 2.7
        assert cut.box[2] >= box[2] - 2.7
        assert cut.box[3] >= box[3] - 2.7


@lru_cache
def model(family: str, max_crops: int = 8) -> PointAndCopyModel:
    torch.manual_seed(0)
    revisit = RevisitConfig("crop", {"max_crops": max_crops})
    made = PointAndCopyModel.build(BackboneConfig(family), revisit=revisit)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim >= 2 and "norm" not in name:
                parameter.mul_(4.0)
    return made.eval()


class Script(LogitsProcessor):
    """The text that is generated first, by the number of tokens since the answer began, crops left out."""

    def __init__(self, pieces: list[str], of: Processor) -> None:
        self.ids = [token for piece in pieces for token in of.encode_text(piece, special=False)]
        self.begin = of.encode_text(of.backbone.chat.marks("assistant")[0])
        self.crop = set(image_ids(of, of.patch_map((28, 28))))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, ids in enumerate(input_ids.tolist()):
            length = len(self.begin)
            start = max(at for at in range(length, len(ids) + 1) if ids[at - length : at] == self.begin)
            said = sum(token not in self.crop for token in ids[start:])
            if said < len(self.ids):
                scores[row] = -torch.inf
                scores[row, self.ids[said]] = 0.0
        return scores


PIECES = ["I look at ", REGIONS[0], "</region>", " and at ", REGIONS[1], "</region>", " too."]


def answers(family: str, images: tuple[int, ...] = (1,)) -> list[Answer]:
    of, found = processor(family), []
    for row, count in enumerate(images):
        pictures = [decode_image(image) for image in example().images * count]
        words = Message("user", "<image>\n" * count + "Where?" * (row + 1))
        prompt = encode_prompt("p", [words], pictures, of, EncodingConfig())
        found.append(Answer(prompt, pictures, prompt.patch_maps))
    return found


def run(
    family: str,
    asked: list[Answer],
    new: int,
    pieces: list[str] = PIECES,
    max_crops: int = 8,
    **options: Any,
) -> list[Answer]:
    of = processor(family)
    torch.manual_seed(0)
    generate_with_crops(
        model(family, max_crops),
        of,
        asked,
        new,
        4096,
        logits_processor=[Script(pieces, of)],
        eos_token_id=of.stop_token_id,
        pad_token_id=of.pad_token_id,
        **{"do_sample": False, **options},
    )
    return asked


@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}, {"do_sample": True}], ids=lambda mode: "+".join(mode))
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_shows_what_training_shows(family: str, mode: dict[str, Any]) -> None:
    """The same text generated: ids and pixels of the example as it is encoded for training."""
    expected = encode(example(), processor(family), EncodingConfig())
    (answer,) = run(family, answers(family), len(Script(PIECES, processor(family)).ids), **mode)
    assert answer.crops == 2
    count = len(answer.shown.input_ids)
    assert torch.equal(answer.shown.input_ids, expected.input_ids[:count])
    stop = processor(family).backbone.chat.stop
    assert processor(family).decode(expected.input_ids[count:].tolist()).strip() == stop
    assert answer.shown.patch_maps == expected.patch_maps
    for name, tensor in expected.image_inputs.items():
        assert torch.equal(answer.shown.image_inputs[name], tensor)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_is_generated_is_what_the_teacher_forced_pass_says(family: str) -> None:
    (answer,) = run(family, answers(family), len(Script(PIECES, processor(family)).ids) + 12)
    of, ids = processor(family), answer.shown.input_ids
    scripted = len(answer.said) - 12
    logits = model(family)(**inputs(collate([answer.shown], of.pad_token_id))).logits[0, -13:-1]
    logits[:, of.image_token_id] = -torch.inf
    assert len(Script(PIECES, of).ids) == scripted
    assert torch.equal(logits.argmax(1), ids[-12:])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_generated_as_each_row_alone(family: str) -> None:
    """Some rows have crops, one has a question without an image and none."""
    together = run(family, answers(family, (1, 0, 1)), 50)
    assert [answer.crops for answer in together] == [2, 0, 2]
    for row, answer in enumerate(together):
        (alone,) = run(family, [answers(family, (1, 0, 1))[row]], 50)
        assert alone.said == answer.said
        assert torch.equal(alone.shown.input_ids, answer.shown.input_ids)


def test_a_malformed_box_is_passed_over_and_the_answer_is_finished() -> None:
    of = processor()
    pieces = ["At ", "<region>[0.9, 0.1, 0.2]", "</region>", *PIECES]
    (answer,) = run("qwen2_5_vl", answers("qwen2_5_vl"), 80, pieces)
    assert answer.crops == 2
    assert of.decode(answer.said).startswith("".join(pieces))
    assert len(answer.said) == 80 or answer.done


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_crops_than_the_cap(most: int) -> None:
    (answer,) = run("qwen2_5_vl", answers("qwen2_5_vl"), 50, max_crops=most)
    assert answer.crops == most == len(answer.shown.patch_maps) - 1


def test_an_answer_stops_at_its_number_of_new_tokens() -> None:
    of = processor()
    closed = len(Script(PIECES[:3], of).ids)
    for new in (1, closed - 1, closed, closed + 1):
        (answer,) = run("qwen2_5_vl", answers("qwen2_5_vl"), new)
        assert answer.said == Script(PIECES, of).ids[:new]
        assert answer.crops == (new > closed)


def test_a_predictor_shows_crops_and_its_prediction_is_of_the_images_alone() -> None:
    of = processor()
    predictor = Predictor(model("qwen2_5_vl"), of)
    image = decode_image(example().images[0])
    options: dict[str, Any] = {"logits_processor": [Script(PIECES, of)]}
    single = predictor(image, "Where?", max_new_tokens=50, **options)
    assert single.text.startswith("".join(PIECES))
    assert len(single.patch_maps) == 1
    assert of.backbone.chat.image_token not in single.text
    sampled = predictor.batch(
        [([image], "Where?")] * 2, max_new_tokens=50, do_sample=True, num_return_sequences=2, **options
    )
    assert len(sampled) == 4
    with pytest.raises(ValueError, match="beam search"):
        predictor(image, "Where?", num_beams=2, num_return_sequences=2)
