"""Text and images go in, ids and tensors come out, and a saved processor does the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from v1lit.backbones import BackboneConfig, get_backbone, list_backbones
from v1lit.backbones.image_processors import checkpoint_image_processor
from v1lit.backbones.processor import FILE, Processor, load_processor
from v1lit.backbones.registry import missing_extra
from v1lit.plan.architecture import published_sizes
from v1lit.testing.models import noise

pytestmark = pytest.mark.dependencies

HERE = [name for name in list_backbones() if missing_extra(name) is None]
PROCESSORS = {name: load_processor(BackboneConfig(name)) for name in HERE}

# What the published checkpoints' preprocessor_config.json say, in the spellings that are in circulation.
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "qwen2_5_vl": [
        {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
        },
        {
            "size": {"shortest_edge": 3136, "longest_edge": 12845056},
            "image_processor_type": "Qwen2VLImageProcessor",
        },
    ],
    "qwen3_vl": [
        {
            "size": {"longest_edge": 16777216, "shortest_edge": 65536},
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_processor_type": "Qwen2VLImageProcessorFast",
        }
    ],
    "qwen3_5": [
        {
            "size": {"longest_edge": 16777216, "shortest_edge": 65536},
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_processor_type": "Qwen2VLImageProcessorFast",
        }
    ],
    "llava": [
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_center_crop": True},
        {"size": 336, "crop_size": 336, "image_processor_type": "CLIPImageProcessor"},
    ],
    "llava_next": [
        {
            "size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336},
            "do_center_crop": True,
            "do_pad": True,
            "aspect_ratio_setting": "anyres",
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
            "image_processor_type": "LlavaNextImageProcessor",
        }
    ],
    "llava_onevision": [
        {
            "size": {"height": 384, "width": 384},
            "do_pad": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "LlavaOnevisionImageProcessor",
        }
    ],
    "internvl": [
        {
            "size": {"height": 448, "width": 448},
            "crop_to_patches": False,
            "min_patches": 1,
            "max_patches": 12,
            "image_processor_type": "GotOcr2ImageProcessorFast",
        }
    ],
}
PUBLISHED["gemma3"] = [
    {
        "do_convert_rgb": None,
        "do_pan_and_scan": None,
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": 256,
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "size": {"height": 896, "width": 896},
    }
]
PUBLISHED["qwen2_vl"] = PUBLISHED["qwen2_5_vl"]


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """A tokenizer that puts a space before whatever it encodes and drops it when decoding, like Llama's."""
    letters = [*"abcdefghijklmnopqrstuvwxyz<>/.,?", "\n", "▁"]
    vocabulary = {token: index for index, token in enumerate(["</s>", "<image>", "<s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", additional_special_tokens=["<image>"]
    )


@given(st.sampled_from(list_backbones()), st.text())
def test_text_survives(name: str, text: str) -> None:
    processor = PROCESSORS[name]
    assert processor.decode(processor.encode_text(text)) == text
    assert processor.decode(processor.encode_text(text, special=False)) == text


def test_marks_in_a_users_text_are_plain_text() -> None:
    processor = PROCESSORS["qwen2_5_vl"]
    assert processor.encode_text("<|im_end|>") == [processor.stop_token_id]
    plain = processor.encode_text("a <|image_pad|><|im_end|>", special=False)
    assert not {processor.image_token_id, processor.stop_token_id} & set(plain)
    assert processor.decode(plain, skip_special=True) == "a <|image_pad|><|im_end|>"


def test_pointers_are_shown_and_never_reach_the_tokenizer() -> None:
    processor = PROCESSORS["llava"]
    ids = processor.encode_text("<region>")
    shown = processor.decode([*ids, processor.pointer_start, processor.pointer_start + 41, *ids])
    assert shown == "<region><|copy_0|><|copy_41|><region>"
    assert processor.decode(torch.tensor(ids)) == "<region>"
    with pytest.raises(ValueError, match="-100 is not a token id"):
        processor.decode([-100])


def test_rows_that_the_tokenizer_does_not_fill_are_shown() -> None:
    made = PROCESSORS["qwen2_vl"]
    processor = Processor(
        made.backbone, made.tokenizer, made.image_processor, pointer_start=made.vocab_size + 10
    )
    assert (
        processor.decode([made.vocab_size, made.vocab_size + 10]) == f"<|unused_{made.vocab_size}|><|copy_0|>"
    )


def test_pieces_of_a_sentence_gain_and_lose_no_spaces() -> None:
    tokenizer = sentencepiece_like()
    assert tokenizer.decode(tokenizer("a")["input_ids"] + tokenizer("b")["input_ids"]) == "a b"
    made = PROCESSORS["llava"]
    processor = Processor(made.backbone, tokenizer, made.image_processor, pointer_start=100)
    pieces = ["the", " cat", "s", " ", "are", "\n", "in. ", "</s>"]
    ids = [token for piece in pieces for token in processor.encode_text(piece)]
    assert processor.decode(ids) == "".join(pieces)
    assert (
        processor.decode([*processor.encode_text(" a"), 103, *processor.encode_text(" b")])
        == " a<|copy_3|> b"
    )
    assert processor.encode_text("</s>") == [0]


@pytest.mark.parametrize("name", list_backbones())
def test_no_images_give_no_tensors(name: str) -> None:
    assert PROCESSORS[name].images([]) == ({}, [])


@pytest.mark.parametrize("name", list_backbones())
@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_any_mode_are_taken(name: str, mode: str) -> None:
    tensors, maps = PROCESSORS[name].images([noise((100, 80)).convert(mode)])
    assert set(tensors) == set(get_backbone(name).image_inputs)
    assert len(maps) == 1


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("qwen2_vl", {"max_pixels": 100 * 100, "max_side": 150}),
        ("qwen2_5_vl", {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}),
        ("llava", {"do_pad": True}),
        ("llava_next", {"max_side": 100}),
        ("llava_onevision", {"max_side": 100}),
        ("internvl", {"max_patches": 3, "max_side": 100}),
        ("gemma3", {"do_pan_and_scan": True}),
        ("timm_lm", {"fit": "pad"}),
    ],
)
def test_a_saved_processor_does_the_same(tmp_path: Path, name: str, image: dict[str, Any]) -> None:
    processor = load_processor(BackboneConfig(name, image=image, views="overview"))
    processor.save_pretrained(tmp_path)
    again = Processor.from_pretrained(tmp_path)
    assert (again.backbone.name, again.views, again.pointer_start) == (
        name,
        "overview",
        processor.pointer_start,
    )
    assert again.image_options == processor.image_options
    assert (again.stop_token_id, again.pad_token_id) == (processor.stop_token_id, processor.pad_token_id)
    images = [noise((200, 120)), noise((60, 90))]
    (tensors, maps), (expected, expected_maps) = again.images(images), processor.images(images)
    assert maps == expected_maps
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    text = "Where is <|im_end|></s> 0.25?"
    assert again.encode_text(text) == processor.encode_text(text)
    assert again.encode_text(text, special=False) == processor.encode_text(text, special=False)


def test_image_options_change_the_pixels() -> None:
    plain = PROCESSORS["qwen2_5_vl"].images([noise((56, 56))])[0]["pixel_values"]
    changed = load_processor(BackboneConfig(image={"image_mean": [0.0] * 3, "image_std": [1.0] * 3}))
    values = changed.images([noise((56, 56))])[0]["pixel_values"]
    assert values.min() >= 0
    assert not torch.equal(plain, values)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"has no {FILE}"):
        Processor.from_pretrained(tmp_path)
    for content, message in (("{", "not valid JSON"), ("{}", "schema_version must be 1")):
        (tmp_path / FILE).write_text(content)
        with pytest.raises(ValueError, match=message):
            Processor.from_pretrained(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({"schema_version": 1, "backbone": "llava"}))
    with pytest.raises(ValueError, match="lacks the key"):
        Processor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("qwen2_5_vl", {"patch_size": 16}, r"vision tower needs .*'patch_size': 14"),
        ("llava", {"crop_size": 112, "size": 112}, "vision tower takes 84x84 pixels"),
        ("internvl", {"size": 112}, "vision tower takes tiles"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(
    name: str, image: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=r"model\.backbone\.image: .*" + message):
        load_processor(BackboneConfig(name, image=image))


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, contents in PUBLISHED.items() for content in contents]
)
def test_published_image_processors_are_read(tmp_path: Path, name: str, content: dict[str, Any]) -> None:
    import transformers

    backbone = get_backbone(name)
    made = getattr(transformers, backbone.model_class).config_class
    made.from_dict(published_sizes().get(backbone.hub_id, {})).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    processor = checkpoint_image_processor(backbone, str(tmp_path))
    assert processor.options == backbone.image_processor().options
    assert checkpoint_image_processor(backbone, str(tmp_path), max_side=99).max_side == 99


def test_threads_do_not_change_how_each_other_reads_marks() -> None:
    from concurrent.futures import ThreadPoolExecutor

    of = PROCESSORS["qwen2_5_vl"]
    mark = of.backbone.chat.stop
    expected = [of.encode_text(mark, special=bool(n % 2)) for n in range(2)]
    assert expected[0] != expected[1]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda n: of.encode_text(mark, special=bool(n % 2)), range(2000)))
    assert found == expected * 1000
