"""Regions of a question are written and read as in training, and checked before."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.asked import predictor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.batch import collate, flatten
from v1lit.data.encode.encoding import build, encode
from v1lit.data.encode.given_regions import RegionError
from v1lit.data.encode.prompt import prompt_ids
from v1lit.data.example import Example, Message
from v1lit.data.images import read_header
from v1lit.data.shards.writer import ShardWriter
from v1lit.errors import OptionError
from v1lit.grounding.region import Region
from v1lit.inference.predictor import Predictor
from v1lit.inference.prompt import AboutRegions, Question
from v1lit.inference.recording import Recording
from v1lit.inference.rows import open_rows
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.testing.models import inputs, noise, processor, with_pointers
from v1lit.training.config import RunConfig
from v1lit.training.report import answer_held_out

WORDS = "What is <|region_1|>, and is it <|region_2|>?"
PICTURES = [noise((112, 84)), noise((84, 140), 1)]
PLACES = [Region.from_box((20, 10, 70, 60)), Region.from_box((10, 30, 60, 90), 1)]
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "internvl", "gemma3"]
"""Plain, with features of deeper layers, with tiles, and with images that see all of themselves."""


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def example(words: str = WORDS, places: list[Region] = PLACES) -> Example:
    """A training row that asks about regions."""
    return Example(
        id="a",
        images=tuple(read_header(png(picture)) for picture in PICTURES),
        messages=(Message("user", "<image>\n<image>\n" + words), Message("assistant", "It is a cat.")),
        regions={f"<|region_{number}|>": place for number, place in enumerate(places, start=1)},
    )


# ---------------------------------------------------------------- as in training


@pytest.mark.parametrize("coordinates", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_the_beginning_of_the_training_row(family: str, coordinates: bool) -> None:
    of = processor(family)
    row = encode(example(), of, EncodingConfig(coordinates=coordinates))
    prompt = predictor(family).prompt(PICTURES, AboutRegions(WORDS, PLACES, coordinates)).encoded
    length = len(prompt.input_ids)
    assert prompt.input_ids.tolist() == row.input_ids[:length].tolist()
    spans = [row.input_ids[span.start : span.stop] - of.pointer_start for span in row.regions]
    first = len(row.patch_maps[0])
    assert spans[0].tolist() == row.patch_maps[0].tokens(PLACES[0])
    assert spans[1].tolist() == [first + token for token in row.patch_maps[1].tokens(PLACES[1])]
    assert (row.labels[:length] == -100).all(), "what was asked is not learned"
    assert all(torch.equal(row.image_inputs[name], tensor) for name, tensor in prompt.image_inputs.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_decoding_are_those_of_training(family: str) -> None:
    """Every token that is generated is as likely where the whole is read at once, padded or packed."""
    asked = predictor(family)
    asks: list[tuple[list[Any], Question]] = [
        (PICTURES, AboutRegions(WORDS, PLACES)),
        (PICTURES[:1], AboutRegions("<|region_1|>?", PLACES[:1])),
    ]
    prompts = [asked.prompt(*ask).encoded for ask in asks]
    batch = collate(prompts, asked.processor.pad_token_id, side="left")
    watch = Recording(asked.model.config.pointer_start)
    ids = asked.model.generate(
        **inputs(batch), max_new_tokens=6, do_sample=False, eos_token_id=None, watch=watch
    )
    said = ids[:, batch.input_ids.shape[1] :]
    found = watch.finish(said, [sum(map(len, prompt.patch_maps)) for prompt in prompts])
    z_weight = asked.model.pointer_options.z_weight
    expected = torch.cat([z_weight * one.totals**2 - one.logprobs for one in found])
    wholes = [
        replace(
            prompt,
            input_ids=torch.cat([prompt.input_ids, new]),
            labels=torch.cat([torch.full_like(prompt.input_ids, -100), new]),
        )
        for prompt, new in zip(prompts, said, strict=True)
    ]
    batches = [collate(wholes, asked.processor.pad_token_id)]
    batches += [flatten(wholes)] if asked.model.family.packs else []
    for whole in batches:
        losses = asked.model(**whole.model_inputs, reduction="none").loss
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)


def test_a_copy_is_what_the_model_reads() -> None:
    """Another patch in the question makes another loss."""
    asked = predictor()
    whole = with_pointers(asked.prompt(PICTURES[0], "<|region_1|>?", [(0, 0, 5, 5)]).encoded, "qwen2_5_vl")
    place = int((whole.input_ids >= asked.processor.pointer_start).nonzero()[0])
    losses = []
    for patch in (0, 7):
        ids = whole.input_ids.clone()
        ids[place] = asked.processor.pointer_start + patch
        losses.append(asked.model(**flatten([replace(whole, input_ids=ids)]).model_inputs).loss.item())
    assert losses[0] != losses[1]


BOXES = st.tuples(
    *[st.floats(0, 100, width=16), st.floats(0, 70, width=16), st.floats(1, 12), st.floats(1, 14)]
).map(lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))


@settings(max_examples=25)
@given(st.lists(BOXES, min_size=1, max_size=3), st.text(max_size=12), st.booleans())
def test_any_boxes_between_any_words_are_written_as_in_training(
    boxes: list[tuple[float, float, float, float]], words: str, mapped: bool
) -> None:
    names = [f"<|region_{number}|>" for number in range(1, len(boxes) + 1)]
    words = "Ask. " + words.replace("<|region_", "").join([*names, ""])
    places = [Region.from_box(box) for box in boxes]
    ask = AboutRegions(words, dict(zip(names, boxes, strict=True)) if mapped else boxes)
    of, maps = processor("qwen2_5_vl"), [processor("qwen2_5_vl").patch_map((112, 84))]
    (message,) = ask.messages(1)
    config = ask.encoding(4096)
    ids = prompt_ids("p", [message], maps, of, config, ask.named)
    row = build(
        [message, Message("assistant", "So.")], dict(zip(names, places, strict=True)), maps, of, config
    )
    assert row.ids[: len(ids)] == ids
    pointed = [token - of.pointer_start for token in ids if token >= of.pointer_start]
    assert pointed == [token for place in places for token in maps[0].tokens(place)]


# ---------------------------------------------------------------- wherever something is asked


@pytest.fixture(scope="module")
def asked() -> Predictor:
    return predictor()


@pytest.mark.parametrize("beams", [1, 2])
def test_in_a_batch_each_has_its_own(asked: Predictor, beams: int) -> None:
    asks: list[tuple[list[Any], Question]] = [
        (PICTURES[:1], AboutRegions("<|region_1|>?", [(0, 0, 40, 40)])),
        (PICTURES, AboutRegions(WORDS, PLACES)),
        (PICTURES[:1], "Is <|region_1|> a word?"),
    ]
    together = asked.batch(asks, max_new_tokens=6, num_beams=beams)
    assert together == [asked(*ask, max_new_tokens=6, num_beams=beams) for ask in asks]
    again = asked(PICTURES[0], "<|region_1|>?", 6, regions=[(0, 0, 40, 40)], num_beams=beams)
    assert together[0] == again
    assert together[2].question == "Is <|region_1|> a word?"


def test_samples_of_which_the_best_is_taken_read_it_too(asked: Predictor) -> None:
    told = []
    for place in ((0, 0, 40, 40), (60, 50, 110, 80)):
        torch.manual_seed(0)
        told.append(asked(PICTURES[0], "<|region_1|>?", 8, regions=[place], best_of=2, temperature=2.0))
    assert told[0].text != told[1].text


def test_a_stream_is_the_same(asked: Predictor) -> None:
    parts = list(asked.stream(PICTURES, WORDS, 6, regions=PLACES))
    assert parts[-1].prediction == asked(PICTURES, WORDS, 6, regions=PLACES)


def test_a_conversation_points_at_any_image_so_far(asked: Predictor) -> None:
    talk = asked.conversation(PICTURES[0])
    talk.ask("<|region_1|>?", max_new_tokens=4, regions=PLACES[:1])
    talk.ask("<|region_1|>, <|region_2|>?", PICTURES[1], max_new_tokens=4, regions=PLACES)
    before = list(talk.ids)
    last = talk.ask("Again <|region_1|>?", max_new_tokens=4, regions=PLACES[1:])
    assert last.counts is not None
    ids = talk.ids[: -last.counts.generated]
    start = asked.processor.pointer_start
    seen = [token - start for token in ids[len(before) :] if token >= start]
    assert seen == [len(last.patch_maps[0]) + token for token in last.patch_maps[1].tokens(PLACES[1])]
    images: dict[str, Any] = asked.processor.images(PICTURES)[0]
    out = asked.model.generate(
        torch.tensor([ids]), **images, max_new_tokens=4, do_sample=False, pad_token_id=0,
        eos_token_id=asked.processor.stop_token_id,
    )  # fmt: skip
    assert out[0, len(ids) :].tolist() == talk.ids[len(ids) :]
    with pytest.raises(RegionError, match="image 2, counted from 0, and there are 2"):
        talk.ask("<|region_1|>?", regions=[PLACES[0].at(2)])
    assert talk.ids[-4:] == out[0, len(ids) :].tolist()[-4:], "the conversation is as it was"


def test_rows_of_shards_ask_about_their_regions(asked: Predictor, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "train") as writer:
        writer.write(example())
    for coordinates in (False, True):
        row = open_rows(str(tmp_path / "train"), coordinates).read(0)
        prompt = asked.prompt(list(row.pictures), row.question).encoded
        trained = encode(example(), asked.processor, EncodingConfig(coordinates=coordinates)).input_ids
        assert prompt.input_ids.tolist() == trained[: len(prompt.input_ids)].tolist()


def test_held_out_rows_are_asked_as_they_are_trained(asked: Predictor) -> None:
    for coordinates in (False, True):
        left_out: list[str] = []
        run = RunConfig(report_max_new_tokens=2)
        (answer,) = answer_held_out(asked, [example()], run, left_out.append, coordinates)
        about = AboutRegions(WORDS, PLACES, coordinates)
        assert answer.prediction == asked([png(picture) for picture in PICTURES], about, 2)
        assert left_out == []


def test_a_conversation_that_is_given_names_regions_in_any_turn(asked: Predictor) -> None:
    turns = [
        Message("user", "<image>\nWhere?"),
        Message("assistant", "There: <|region_1|>"),
        Message("user", "Not <|region_1|>?"),
    ]
    prompt = asked.prompt(PICTURES[0], turns, PLACES[:1]).encoded
    pointers = int((prompt.input_ids >= asked.processor.pointer_start).sum())
    assert pointers == 2 * len(prompt.patch_maps[0].tokens(PLACES[0]))
    with pytest.raises(RegionError, match=r"write <\\\|region_1\|>"):
        asked.prompt(PICTURES[0], turns)


def test_a_saved_processor_writes_as_its_model_does(tmp_path: Path) -> None:
    model = PointAndCopyModel.build(
        BackboneConfig("qwen2_5_vl"), revisit=RevisitConfig("point_and_copy", {"end": "pointer"})
    )
    ends = Predictor(model, processor("qwen2_5_vl"))
    ids = ends.prompt(PICTURES[0], "<|region_1|>?", [(0, 0, 5, 5)]).encoded.input_ids
    pointers = ids[ids >= ends.processor.pointer_start] - ends.processor.pointer_start
    assert pointers.tolist() == [0, len(ends.processor.patch_map((112, 84)))], "with the end of a run"


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("words", "regions", "said"),
    [
        ("<|region_1|>?", [(0, 0, 113, 84)], r"<\|region_1\|>: it reaches from \[0.0, 0.0, 113.0, 84.0\]"),
        ("<|region_1|>?", [(-1, 0, 9, 9)], "its image has 112 x 84: give pixels of the original"),
        ("<|region_1|>?", [(200, 200, 300, 300)], r"<\|region_1\|>: it reaches"),
        ("<|region_1|>?", [np.ones((3, 3), dtype=bool)], "the mask of 3 x 3 pixels, and its image has"),
        ("<|region_1|>?", [(5, 5, 5, 9)], r"<\|region_1\|>: a box is x1, y1, x2, y2 with x1 < x2"),
        ("<|region_1|>?", [np.zeros((84, 112), dtype=bool)], "has no pixel inside; a region cannot be empty"),
        ("<|region_1|>?", [(0, 0, float("nan"), 9)], "a coordinate is a finite number of pixels"),
        ("<|region_1|>?", [PLACES[1]], "it lies in image 1, counted from 0, and there are 1"),
        ("<|region_1|> <|region_2|>?", [(0, 0, 9, 9)], r"<\|region_2\|>: it is named, but no such region"),
        ("What is it?", [(0, 0, 9, 9)], "it is given, but never named: write"),
        ("<|region_1|>?", {"cat": (0, 0, 9, 9)}, "cat: names of regions are like"),
    ],
)
def test_a_region_that_cannot_be_is_refused_by_its_name(
    asked: Predictor, words: str, regions: Any, said: str
) -> None:
    with pytest.raises(RegionError, match=said):
        asked(PICTURES[0], words, 2, regions=regions)


def test_one_box_is_no_list_of_regions_and_regions_are_given_once(asked: Predictor) -> None:
    for one in ((0, 0, 9, 9), PLACES[0]):
        with pytest.raises(OptionError, match="give a list of regions or boxes, also of one"):
            AboutRegions("<|region_1|>?", one)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="give them once"):
        asked(PICTURES[0], AboutRegions("<|region_1|>?", PLACES[:1]), regions=PLACES[:1])


def test_a_region_that_no_image_token_sees_is_refused() -> None:
    wide = noise((300, 100))  # of which LLaVA sees the middle square
    with pytest.raises(RegionError, match="is seen by no image token, so there is nothing to copy"):
        predictor("llava")(wide, "<|region_1|>?", 2, regions=[(0, 0, 60, 60)])


def test_what_rounding_took_out_of_an_image_is_moved_onto_its_edge(asked: Predictor) -> None:
    ids = [
        asked.prompt(PICTURES[0], AboutRegions("<|region_1|>?", [box])).encoded.input_ids.tolist()
        for box in ((-1e-5, 0, 112.001, 84), (0, 0, 112, 84))
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("name", ["text_only", "crop"])
def test_a_strategy_that_shows_no_regions_says_so(name: str) -> None:
    model = PointAndCopyModel.build(BackboneConfig("qwen2_5_vl"), revisit=RevisitConfig(name))
    with pytest.raises(RegionError, match=r"the strategy (TextOnly writes nothing|Crop encodes crops)"):
        Predictor(model, processor("qwen2_5_vl"))(PICTURES[0], "<|region_1|>?", 2, regions=PLACES[:1])
