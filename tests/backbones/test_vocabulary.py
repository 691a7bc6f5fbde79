"""Ids of text stay below those of pointers, and marks are single tokens that nobody's words can hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.stock_folders import edit_json, stock_folder
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.backbones.tiny import tiny_tokenizer


def made(
    tokenizer: PreTrainedTokenizerBase, pointer_start: int | None = None, family: str = "qwen2_5_vl"
) -> Processor:
    whole = load_processor(BackboneConfig(family))
    return Processor(whole.backbone, tokenizer, whole.image_processor, pointer_start or whole.pointer_start)


def with_tokenizer(folder: Path, change: Callable[[Any], object], family: str = "qwen2_5_vl") -> Processor:
    """The processor of a stock folder after a change to its ``tokenizer.json``."""
    stock_folder(folder, family)
    edit_json(folder / "tokenizer.json", change)
    return load_processor(BackboneConfig(family, weights=str(folder)))


def added(content: dict[str, Any], token: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in content["added_tokens"] if entry["content"] == token)
    return found


@pytest.mark.parametrize("special", [True, False])
def test_tokens_beyond_the_embedding_table_are_refused(special: bool, tmp_path: Path) -> None:
    stock_folder(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer.add_tokens([f"<loc{number}>" for number in range(5)], special_tokens=special)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="where ids are pointers: '<loc0>' ") as error:
        load_processor(BackboneConfig(weights=str(tmp_path)))
    assert str(tmp_path) in str(error.value)
    assert f"resize_token_embeddings({len(tokenizer)})" in str(error.value)


def with_gap(far: int) -> PreTrainedTokenizerBase:
    """Marks and letters, then nothing up to one token far off."""
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {token: number for number, token in enumerate(["</s>", "<image>", "<s>", *"abc\n"])}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, "z": far}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", additional_special_tokens=["<image>"]
    )


def test_it_is_the_highest_id_that_counts_and_not_the_number_of_tokens() -> None:
    assert len(with_gap(far=50)) < 20
    with pytest.raises(ValueError, match=r"beyond the 20 rows .* where ids are pointers: 'z' \(50\)"):
        made(with_gap(far=50), pointer_start=20, family="llava")


def test_ids_without_a_token_are_shown_and_the_one_beyond_them_is_read() -> None:
    processor = made(with_gap(far=50), pointer_start=60, family="llava")
    assert processor.vocab_size == 51
    assert processor.encode_text("az") == [3, 50]
    assert processor.decode([3, 20, 50, 51, 60]) == "a<|unused_20|>z<|unused_51|><|copy_0|>"


def test_ids_that_the_library_numbers_otherwise_are_refused(tmp_path: Path) -> None:
    def one_more(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["<far>"] = max(vocabulary.values()) + 1  # added tokens move up by one

    with pytest.raises(ValueError, match=r"tokenizer\.json says that '<think>' is 1253, but .* has 1254"):
        with_tokenizer(tmp_path, one_more)


def ordinary(content: dict[str, Any]) -> None:
    added(content, "<|image_pad|>")["special"] = False


def no_mark(content: dict[str, Any]) -> None:
    added(content, "<|im_start|>")["content"] = "<|begin|>"
    vocabulary = content["model"]["vocab"]
    vocabulary["<|begin|>"] = vocabulary.pop("<|im_start|>")


def in_pieces(content: dict[str, Any]) -> None:
    entry = added(content, "<|vision_start|>")
    content["added_tokens"].remove(entry)
    content["model"]["vocab"]["<|vision_start|>"] = entry["id"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (ordinary, r"has '<\|image_pad\|>' as an ordinary token"),
        (no_mark, r"has no token '<\|im_start\|>'"),
        (in_pieces, r"knows '<\|vision_start\|>', but takes it to pieces"),
    ],
)
def test_marks_are_single_tokens_and_only_marks(
    change: Callable[[Any], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        with_tokenizer(tmp_path, change)
    assert str(error.value).startswith(str(tmp_path))


def test_padding_is_no_image() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<|image_pad|>"
    with pytest.raises(ValueError, match=r"pads with '<\|image_pad\|>'"):
        made(tokenizer)


@pytest.mark.parametrize("name", ["image_token_id", "vision_start_token_id", "vision_end_token_id"])
def test_config_and_tokenizer_agree_on_the_marks_of_images(name: str, tmp_path: Path) -> None:
    stock_folder(tmp_path)
    edit_json(tmp_path / "config.json", lambda content: content.update({name: 9}))
    with pytest.raises(ValueError, match=rf"config\.json has {name} 9, but the tokenizer's"):
        load_processor(BackboneConfig(weights=str(tmp_path)))


@pytest.mark.parametrize("family", ["llava", "internvl"])
def test_other_families_agree_on_the_image_token_too(family: str, tmp_path: Path) -> None:
    stock_folder(tmp_path, family)
    name = "image_token_index" if family == "llava" else "image_token_id"
    edit_json(tmp_path / "config.json", lambda content: content.update({name: 9}))
    with pytest.raises(ValueError, match=r"config\.json has image_token_id 9"):
        load_processor(BackboneConfig(family, weights=str(tmp_path)))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("added_tokens.json", {"<loc1>": 1279}, "says that '<loc1>' is 1279, but the tokenizer has no such"),
        ("added_tokens.json", {"<|im_end|>": 12}, "is 12, but the tokenizer has"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}, "names code of its own"),
        ("tokenizer.json", {}, "cannot be read"),
    ],
)
def test_files_of_another_tokenizer_are_refused(
    file: str, content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    stock_folder(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_processor(BackboneConfig(weights=str(tmp_path)))


def test_a_checkpoint_and_what_is_exported_from_it_have_one_tokenizer(tmp_path: Path) -> None:
    stock_folder(tmp_path / "stock", "llava")
    edit_json(
        tmp_path / "stock" / "tokenizer_config.json", lambda content: content.update(tokenizer_class="Llama")
    )
    processor = load_processor(BackboneConfig("llava", weights=str(tmp_path / "stock")))
    processor.save_pretrained(tmp_path / "model")
    again = Processor.from_pretrained(tmp_path / "model")
    text = "Where is the  red circle,  please?\n"
    assert again.encode_text(text) == processor.encode_text(text)
    assert type(again.tokenizer) is type(processor.tokenizer)
