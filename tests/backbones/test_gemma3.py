"""Gemma 3: windows, images that see themselves whole, scaled words and plain copies, crops, its chat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import Gemma3Processor

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.gemma3 import CROPS, crop_boxes
from v1lit.backbones.load import check_weights, load_backbone
from v1lit.backbones.processor import Processor, load_processor
from v1lit.backbones.registry import get_backbone
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.batch import collate, flatten
from v1lit.data.encode.encoding import Encoded, EncodingError
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.example import Message
from v1lit.grounding.patch_map import OVERVIEW
from v1lit.labels import IGNORE
from v1lit.pointer.model import PointAndCopyModel
from v1lit.testing.models import (
    SIZES,
    build,
    generate,
    inputs,
    noise,
    prefers_pointing,
    processor,
    with_pointers,
)
from v1lit.testing.parity import assert_refused, stock_logits
from v1lit.training.flops import ModelFlops, Work, WorkSum, pairs_within
from v1lit.training.packing_check import check_packing

pytestmark = pytest.mark.dependencies

FAMILY = "gemma3"
WINDOW = 24
START = processor(FAMILY).pointer_start
TIED = {"tie_word_embeddings": True}
PAN = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 30}


def examples(pointers: bool = True) -> list[Encoded]:
    """Of several windows each: images at both ends, none, and copies far behind their image."""
    of, words = processor(FAMILY), "Where is it, and what stands beside it? " * 4
    texts = [f"<image>{words}", words, f"{words}<image>{words}<image>Here?"]
    made = []
    for seed, text in enumerate(texts):
        pictures = [noise(SIZES[seed + n], seed + n) for n in range(text.count("<image>"))]
        prompt = encode_prompt(f"p{seed}", [Message("user", text)], pictures, of, EncodingConfig())
        assert len(prompt.input_ids) > 2 * WINDOW
        made.append(with_pointers(prompt, FAMILY, seed) if pointers else prompt)
    return made


# ---------------------------------------------------------------- what sees what


@pytest.mark.parametrize(
    "options", [{}, {"attention": "eager"}, {"tiny": TIED}], ids=["sdpa", "eager", "tied"]
)
def test_logits_beyond_the_window_are_those_of_the_stock_class(options: dict[str, Any]) -> None:
    model, of = build(FAMILY, **options), processor(FAMILY)
    for side in ("left", "right"):
        batch = collate(examples(pointers=False), of.pad_token_id, side=side)
        real = batch.attention_mask.bool()
        with torch.no_grad():
            ours = model(**inputs(batch)).logits[real][:, : of.pointer_start]
        theirs = stock_logits(model.backbone, image_token_id=of.image_token_id, **inputs(batch))[real]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_greedy_generation_is_that_of_the_stock_class() -> None:
    """Head off: pointers are never chosen. With the sliding cache of either, beyond the window."""
    model, of = build(FAMILY), processor(FAMILY)
    batch = collate(examples(pointers=False), of.pad_token_id, side="left")
    model.pointer_head.query.weight.data.zero_()
    model.pointer_head.query.bias.data.zero_()
    limits = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False}
    banned = list(range(of.pointer_start, of.pointer_start + 2 * 16))
    ours = model.generate(**inputs(batch), **limits, suppress_tokens=banned)
    types = (batch.input_ids == of.image_token_id).int()
    theirs = model.backbone.generate(
        **inputs(batch), **limits, token_type_ids=types, suppress_tokens=[of.image_token_id]
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"tiny": TIED}, {"gradient_checkpointing": ["language"]}], ids=str)
def test_packed_examples_beyond_the_window_are_as_each_alone(options: dict[str, Any]) -> None:
    model = build(FAMILY, **options).train()
    check = check_packing(model, examples(), processor(FAMILY).pad_token_id)
    assert check.passed, check


def test_pixels_of_another_example_change_not_a_bit() -> None:
    model, (one, _, two) = build(FAMILY), examples()
    other = replace(two, image_inputs={"pixel_values": two.image_inputs["pixel_values"].flip(-1)})
    counts = [int((example.labels != IGNORE).sum()) for example in (one, two, one)]
    with torch.no_grad():
        first, second = (
            model(**flatten([one, x, one]).model_inputs, reduction="none").loss.split(counts)
            for x in (two, other)
        )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[2], second[2])
    assert not torch.equal(first[1], second[1])


def test_decoding_of_copies_with_the_cache_is_that_without_beyond_the_window() -> None:
    model, of = prefers_pointing(FAMILY), processor(FAMILY)
    batch = collate(examples(pointers=False), of.pad_token_id, side="left")
    runs = [generate(model, batch, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*runs)
    assert (runs[0][[0, 2]] >= of.pointer_start).any()


def decoder_inputs(model: PointAndCopyModel, ids: torch.Tensor, images: dict[str, torch.Tensor]) -> Any:
    seen: dict[str, Any] = {}
    handle = model.backbone.get_decoder().register_forward_pre_hook(
        lambda _, args, options: seen.update(options), with_kwargs=True
    )
    with torch.no_grad():
        model(ids, torch.ones_like(ids), **images)
    handle.remove()
    return seen


def test_a_copy_is_the_unscaled_embedding_and_words_are_scaled() -> None:
    model, (example, *_) = build(FAMILY), examples()
    start, image = model.config.pointer_start, model.config.image_token_id
    ids = example.input_ids[None]
    embeds = decoder_inputs(model, ids, example.image_inputs)["inputs_embeds"][0]
    with torch.no_grad():
        features = model.backbone.get_image_features(**example.image_inputs).pooler_output.flatten(0, 1)
    assert torch.equal(embeds[example.input_ids == image], features)
    copies = example.input_ids >= start
    assert copies.any()
    assert torch.equal(embeds[copies], features[example.input_ids[copies] - start])
    words = (example.input_ids < start) & (example.input_ids != image)
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(embeds[words], table[example.input_ids[words]] * table.shape[1] ** 0.5)


def test_a_copy_is_in_no_block_also_right_behind_its_image() -> None:
    """It sees what is before it alone, and its image does not see it."""
    model, (example, *_) = build(FAMILY), examples()
    start, image = model.config.pointer_start, model.config.image_token_id
    places = (example.input_ids == image).nonzero()[:, 0]
    behind = int(places[-1]) + 1
    ids = example.input_ids[None].repeat(2, 1)
    ids[:, behind], ids[1, behind] = start, start + 5
    masks = decoder_inputs(model, ids[:1], example.image_inputs)["attention_mask"]
    for mask in masks.values():
        assert not mask[0, 0, :behind, behind].any()
        assert mask[0, 0, places[0], places[-1]]
        assert not mask[0, 0, behind, behind + 1]
    with torch.no_grad():
        first, second = (model(row[None], **example.image_inputs).logits for row in ids)
    assert torch.equal(first[:, :behind], second[:, :behind])
    assert not torch.equal(first[:, behind], second[:, behind])


def test_every_token_of_an_image_depends_on_its_last_and_on_no_later_one() -> None:
    model, (example, *_) = build(FAMILY), examples()
    ids, embeds = example.input_ids[None], torch.randn(1, 16, model.width)
    changed = embeds.clone()
    changed[:, -1] += 1
    places = (ids[0] == model.config.image_token_id).nonzero()[:, 0]
    with torch.no_grad():
        # Of words: what can be pointed at has the image's states for keys.
        first, second = (model(ids, image_embeds=x).logits[0, :, :START] for x in (embeds, changed))
    differs = (first != second).any(-1)
    assert differs[places].all()
    assert not differs[: places[0]].any()


# ---------------------------------------------------------------- operations


def test_a_window_makes_attention_cheaper_and_an_image_dearer() -> None:
    flops = ModelFlops(build(FAMILY))
    lengths = [len(example.input_ids) for example in examples()]
    total = WorkSum(flops.model)
    total.add(flatten(examples(), processor(FAMILY).pointer_start))
    work = total.sum()
    assert work.pairs == sum(length**2 for length in lengths)
    assert work.near == sum(pairs_within(length, WINDOW) for length in lengths)
    assert work.vision.ahead == 3 * 16**2
    near, far, ahead = (
        flops.parts(Work(0, pairs, 0, 1, work.vision._replace(ahead=ahead), near))["language"].attention
        for pairs, near, ahead in ((0, 100, 0), (100, 0, 0), (0, 0, 50))
    )
    assert near == far == ahead  # one layer of either kind, and both see ahead


@given(st.integers(1, 60), st.integers(1, 60))
def test_pairs_within_a_window_are_counted(length: int, window: int) -> None:
    pairs = sum(1 - 0.5 * (row == column) for row in range(length) for column in range(row + 1))
    near = [(row, column) for row in range(length) for column in range(row + 1) if row - column < window]
    assert pairs_within(length, None) == length**2 == 2 * pairs
    # A token counts half of itself, and half of the last one that it sees.
    kept = 2 * len(near) - min(length, window) - max(0, length - window) * (window < length)
    assert abs(pairs_within(length, window) - kept) <= length


# ---------------------------------------------------------------- pan and scan


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (140, 100), (100, 100), (301, 95), (61, 40)])
def test_pixels_of_pan_and_scan_are_those_of_its_boxes(size: tuple[int, int]) -> None:
    backbone = get_backbone(FAMILY)
    made, image = backbone.image_processor("tiny", **PAN), noise(size)
    tensors, (patch_map,) = backbone.preprocess([image], made)
    boxes = crop_boxes(size, *(made.options[key] for key in CROPS[1:]))
    assert len(tensors["pixel_values"]) == 1 + len(boxes)
    assert len(patch_map) == 16 * (1 + len(boxes))
    plain = backbone.image_processor("tiny")
    shown = [image, *(image.crop(tuple(map(int, box))) for box in boxes)]
    for pixels, picture in zip(tensors["pixel_values"], shown, strict=True):
        torch.testing.assert_close(pixels, backbone.preprocess([picture], plain)[0]["pixel_values"][0])
    assert (patch_map.token_views == OVERVIEW).sum() == 16 * bool(boxes)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 300), st.integers(1, 6), st.floats(1, 3))
def test_crops_cover_the_image_or_are_refused(
    width: int, height: int, least: int, most: int, ratio: float
) -> None:
    try:
        boxes = crop_boxes((width, height), least, most, ratio)
    except ValueError as error:
        assert "cannot be cut" in str(error)  # noqa: PT017
        return
    assert len(boxes) != 1 or most == 1
    if boxes:
        assert boxes[0][:2] == (0, 0)
        assert boxes[-1][2:] == (width, height)
        assert sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes) == width * height


# ---------------------------------------------------------------- its chat

TEMPLATE = (
    "{{ bos_token }}{%- set prefix = '' -%}{%- if messages[0].role == 'system' -%}"
    "{%- set prefix = messages[0].content + '\n\n' -%}{%- set messages = messages[1:] -%}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{{ prefix if loop.first else '' }}{{ message.content | trim }}{{ '<end_of_turn>\n' }}"
    "{%- endfor -%}{{ '<start_of_turn>model\n' if add_generation_prompt else '' }}"
)
"""What the published template does with messages of text, in which images are `<start_of_image>`."""


def with_line_breaks() -> Processor:
    """The tiny processor with a tokenizer that has tokens for several line breaks, like the published one."""
    made = load_processor(BackboneConfig(FAMILY, image=PAN))
    breaks = [AddedToken("\n" * count, normalized=False) for count in range(1, 8)]
    made.tokenizer.add_tokens(breaks)
    marks = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    made.tokenizer._set_model_specific_special_tokens(marks)
    made.tokenizer.bos_token = "<bos>"
    return Processor(made.backbone, made.tokenizer, made.image_processor, len(made.tokenizer))


CONVERSATIONS = [
    [("user", "<image>Where is it?")],
    [("system", "You look again."), ("user", "<image>Where is it?")],
    [("system", "You look again."), ("user", "What?\n<image>\nWhere is it?")],
    [("user", "<image><image>Which?"), ("assistant", "This one."), ("user", "And <image>?")],
    [("user", "Hello"), ("assistant", "\nHi"), ("user", "Two\n\nlines <image>")],
]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=str)
@pytest.mark.parametrize("size", [(100, 90), (200, 70)], ids=["whole", "crops"])
def test_a_conversation_has_the_ids_of_the_stock_processor(
    conversation: list[tuple[str, str]], size: tuple[int, int]
) -> None:
    ours = with_line_breaks()
    pictures = [noise(size, seed) for seed in range(sum(text.count("<image>") for _, text in conversation))]
    messages: list[Any] = [Message(role, text) for role, text in conversation]
    encoded = encode_prompt("x", messages, pictures, ours, EncodingConfig())
    stock = Gemma3Processor(ours.image_processor.processor, ours.tokenizer, TEMPLATE, image_seq_length=16)
    begun = [
        {"role": role, "content": text.replace("<image>", "<start_of_image>")} for role, text in conversation
    ]
    text = stock.apply_chat_template(begun, add_generation_prompt=True)
    starts_with_break = any(text == "\nHi" for _, text in conversation)
    if starts_with_break:  # the template trims, and here an answer is as it was given
        text = text.replace("model\nHi", "model\n\nHi")
    images = {"images": pictures} if pictures else {}
    made = stock(text=text, **images, add_special_tokens=False, return_tensors="pt", **PAN)
    wanted, shown = made["input_ids"][0].tolist(), encoded.input_ids.tolist()
    if starts_with_break:  # line breaks of an answer stay apart from those of its mark
        assert ours.decode(shown) == ours.decode(wanted)
    else:
        assert shown == wanted
    if pictures:
        torch.testing.assert_close(made["pixel_values"], encoded.image_inputs["pixel_values"])


def test_ids_do_not_depend_on_what_is_supervised() -> None:
    ours = with_line_breaks()
    for conversation in CONVERSATIONS:
        messages: list[Any] = [Message(role, text) for role, text in conversation]
        pictures = [noise((90, 90))] * sum(text.count("<image>") for _, text in conversation)
        one, other = (
            encode_prompt("x", messages, pictures, ours, EncodingConfig(supervise=what)).input_ids
            for what in ("assistant", "all")
        )
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "conversation", [[("user", "a"), ("system", "b"), ("user", "c")], [("system", "b"), ("assistant", "c")]]
)
def test_a_system_message_belongs_into_the_first_user_message(conversation: list[tuple[str, str]]) -> None:
    messages: list[Any] = [Message(role, text) for role, text in conversation]
    with pytest.raises(EncodingError, match="writes a system message into the first user message"):
        encode_prompt("x", messages, [], processor(FAMILY), EncodingConfig())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("part", "key", "value", "reason"),
    [
        ("text_config", "final_logit_softcapping", 30.0, "final_logit_softcapping 30.0"),
        ("text_config", "attn_logit_softcapping", 50.0, "attn_logit_softcapping 50.0"),
        ("text_config", "use_bidirectional_attention", True, "use_bidirectional_attention True"),
        ("vision_config", "model_type", "clip_vision_model", "vision tower 'clip_vision_model'"),
    ],
)
def test_what_the_stock_class_does_not_compute_is_refused(
    part: str, key: str, value: Any, reason: str
) -> None:
    config: dict[str, Any] = {"model_type": FAMILY, part: {key: value}}
    assert_refused(lambda: get_backbone(FAMILY).check_checkpoint(config, "x"), reason, key)


def test_a_window_below_an_image_is_refused() -> None:
    config = BackboneConfig(FAMILY, tiny={"window": 15})
    assert_refused(lambda: load_backbone(config), "window is 15", "a window of 15 tokens")
    backbone, model = get_backbone(FAMILY), load_backbone(BackboneConfig(FAMILY)).config
    model.text_config.sliding_window = 15
    options = backbone.image_processor("tiny").options
    assert_refused(lambda: backbone.check_fit(options, model), "sliding_window 15", "a window of 15 tokens")


def test_a_gemma_without_a_tower_is_explained(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma3_text"}')
    config = BackboneConfig(FAMILY, weights=str(tmp_path))
    assert_refused(lambda: check_weights(config), "without a vision tower", "a text model")


def test_a_static_cache_is_refused_with_the_reason() -> None:
    model, of = build(FAMILY), processor(FAMILY)
    batch = collate(examples(pointers=False)[:1], of.pad_token_id, side="left")
    assert_refused(
        lambda: generate(model, batch, do_sample=False, cache_implementation="static"),
        "generate without cache_implementation",
        "a static cache",
    )


def test_an_image_is_256_tokens_whatever_its_shape() -> None:
    backbone = get_backbone(FAMILY)
    for size in ((896, 896), (3000, 20), (1, 1)):
        patch_map = backbone.patch_map(size)
        assert len(patch_map) == 256
        assert patch_map.boxes[-1].tolist() == [size[0] * 15 / 16, size[1] * 15 / 16, *size]
    assert len(backbone.patch_map((1600, 600), do_pan_and_scan=True)) == 256 * (1 + 3)
