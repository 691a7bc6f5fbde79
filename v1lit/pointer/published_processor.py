"""Tokenizer and image processor of the published layout, written for its own code and read again.

The published code appends `<|copy_0|>`, `<|copy_1|>`, ... to the tokenizer whenever it opens one, and expects
the first of them to be the model's first pointer. A tokenizer that is shorter gets names for the ids between;
both are taken away again when the folder is read, since no id from `pointer_start` on is text here.
Source: jun297/v1, v1/processor.py, `get_processor`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from v1lit.backbones.contract import Backbone
from v1lit.backbones.folder import check_image_processor_files, check_tokenizer_files
from v1lit.backbones.image_processors import PROCESSOR_FILE, checkpoint_image_processor
from v1lit.backbones.processor import Processor
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.vocabulary import check_config_ids, load_tokenizer
from v1lit.backbones.weight_files import read_json
from v1lit.files import write_atomically
from v1lit.grounding.markup import POINTER_BEGIN
from v1lit.pointer.model_config import PointAndCopyConfig

FAMILY = "qwen2_5_vl"
TOKENIZER, TOKENIZER_CONFIG, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
IMAGES = "preprocessor_config.json"
_FILES = (
    *(TOKENIZER, TOKENIZER_CONFIG, ADDED, "special_tokens_map.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", IMAGES, "processor_config.json", PROCESSOR_FILE),
)
"""All that a tokenizer or an image processor is read from."""
_FILLER = re.compile(r"<\|unused_(\d+)\|>")
_POINTER = re.compile(rf"{re.escape(POINTER_BEGIN)}(\d+)\|>")


def save_published_processor(processor: Processor, folder: Path) -> None:
    """Write tokenizer and image processor so that the published code finds pointers where the model has them.

    `v1lit_processor.json` is written too, for what no other file has. Raises ValueError for a tokenizer that
    cannot be filled up to the first pointer.
    """
    processor.save_pretrained(folder)
    tokenizer = deepcopy(processor.tokenizer)
    names = {
        f"<|unused_{number}|>": number for number in range(processor.vocab_size, processor.pointer_start)
    }
    tokenizer.add_tokens(list(names))
    vocabulary = tokenizer.get_vocab()
    if any(vocabulary[name] != number for name, number in names.items()):
        raise ValueError(
            f"the tokenizer does not number new tokens from {processor.vocab_size} on, so the published "
            f"code would not find pointers at {processor.pointer_start}\ntake the layout of v1lit itself"
        )
    tokenizer.save_pretrained(folder)
    # transformers 4.51, which the published code needs, knows no other name, and reads no pixels from `size`.
    _edit(folder / TOKENIZER_CONFIG, {"tokenizer_class": "Qwen2Tokenizer"})
    options = processor.image_options
    _edit(folder / IMAGES, {key: options[key] for key in ("min_pixels", "max_pixels")})


def read_published_processor(folder: Path, config: PointAndCopyConfig) -> Processor:
    """The processor of a folder in the published layout, without the tokens that stand for pointers.

    Raises ValueError for one that is missing, damaged or of another model.
    """
    backbone, start = get_backbone(FAMILY), config.pointer_start
    assert start is not None
    check_tokenizer_files(folder, backbone.hub_id)
    check_image_processor_files(folder, backbone.hub_id)
    with TemporaryDirectory(prefix="v1lit-") as place:
        own = Path(place)
        for path in (folder / name for name in _FILES):
            if path.is_file():
                (own / path.name).write_bytes(_without_pointers(path, start))
        try:
            return _read(own, backbone, config)
        except ValueError as error:
            raise ValueError(str(error).replace(place, str(folder))) from error


def _read(folder: Path, backbone: Backbone, config: PointAndCopyConfig) -> Processor:
    start = config.pointer_start
    assert start is not None
    if not (folder / PROCESSOR_FILE).is_file():
        tokenizer = load_tokenizer(str(folder), backbone.hub_id)
        check_config_ids(tokenizer, backbone.chat, config.backbone_config)
        images = checkpoint_image_processor(backbone, str(folder), config.backbone_config)
        return Processor(backbone, tokenizer, images, start)
    processor = Processor.from_pretrained(folder)
    if processor.pointer_start != start:
        raise ValueError(
            f"{folder}: pointers begin at {start} in config.json, but at {processor.pointer_start} in "
            f"{PROCESSOR_FILE}\nthe files are of different models; take all from one place"
        )
    return processor


def _without_pointers(path: Path, start: int) -> bytes:
    """A file as it is, but for tokens that stand for pointers, or for ids that no text has."""
    if path.name == ADDED:
        kept = {
            token: number for token, number in read_json(path).items() if not _no_text(token, number, start)
        }
        return json.dumps(kept).encode()
    if path.name == TOKENIZER_CONFIG:
        content = read_json(path)
        if entries := content.get("added_tokens_decoder"):
            content["added_tokens_decoder"] = {
                number: entry
                for number, entry in entries.items()
                if not _no_text(entry["content"], number, start)
            }
        return json.dumps(content).encode()
    if path.name == TOKENIZER:
        content = read_json(path)
        content["added_tokens"] = [
            entry
            for entry in content.get("added_tokens") or []
            if not _no_text(entry["content"], entry["id"], start)
        ]
        return json.dumps(content).encode()
    return path.read_bytes()


def _no_text(token: str, number: Any, start: int) -> bool:
    """Whether a token of this id is one that only the published layout has."""
    number = int(number)
    if filler := _FILLER.fullmatch(token):
        return int(filler[1]) == number < start
    pointer = _POINTER.fullmatch(token)
    return pointer is not None and start + int(pointer[1]) == number


def _edit(path: Path, values: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps({**read_json(path), **values}, indent=2) + "\n")
