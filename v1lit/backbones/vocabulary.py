"""The ids of a tokenizer against the model's: text below `pointer_start`, marks that are one token each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from v1lit.backbones.chat import ChatFormat
from v1lit.backbones.folder import check_tokenizer_files
from v1lit.backbones.tiny import token_id
from v1lit.backbones.weight_files import read_json
from v1lit.errors import first_of, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def load_tokenizer(source: str, hub_id: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub repository, from `tokenizer.json` where there is one.

    Raises ValueError for one with code of its own or two opinions about an id, and what reading raises.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils.hub import has_file

    folder = Path(source)
    if folder.is_dir():
        check_tokenizer_files(folder, hub_id)
    # A model config in the same folder would make AutoTokenizer choose by the model, not by the file.
    cls = PreTrainedTokenizerFast if has_file(source, "tokenizer.json") else AutoTokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = cls.from_pretrained(source, trust_remote_code=False)
    except OSError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ValueError(
            f"the tokenizer of {source} cannot be read: {one_line(error)}\nget its files again"
        ) from error
    if folder.is_dir():
        _refuse_contradictions(tokenizer, folder)
    return tokenizer


def check_vocabulary(vocabulary: dict[str, int], pointer_start: int) -> None:
    """Raise ValueError for tokens whose ids would be pointers: those from `pointer_start` on."""
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= pointer_start)
    if beyond:
        shown = first_of([f"{token!r} ({number})" for number, token in beyond])
        raise ValueError(
            f"the tokenizer has tokens beyond the {pointer_start} rows of the model's embedding table, "
            f"where ids are pointers: {shown}\n"
            f"enlarge the table with model.resize_token_embeddings({beyond[-1][0] + 1}) and save the model, "
            "or use the tokenizer that came with it"
        )


def check_marks(
    tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, encode: Callable[[str, bool], list[int]]
) -> None:
    """Raise ValueError unless every mark of the family's conversations is one token, and only as a mark.

    A mark that the tokenizer takes to pieces would be new to the model; one that it makes out of somebody's
    words would let a text hold an image. `encode` returns the ids of a text, with marks or without.
    """
    for mark in chat.single:
        number = token_id(tokenizer, mark)
        if encode(mark, True) != [number]:
            raise ValueError(
                f"the tokenizer knows {mark!r}, but takes it to pieces; save it after "
                f"tokenizer.add_special_tokens({{'additional_special_tokens': [{mark!r}]}})"
            )
        if number in encode(mark, False):
            raise ValueError(
                f"the tokenizer has {mark!r} as an ordinary token, which words could hold; save it "
                f"after tokenizer.add_special_tokens({{'additional_special_tokens': [{mark!r}]}})"
            )


def check_config_ids(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, config: PreTrainedConfig) -> None:
    """Raise ValueError if the model's config knows a mark by another id than the tokenizer."""
    before, after = chat.image
    for name, mark in (
        ("image_token_id", chat.image_token),
        ("vision_start_token_id", before),
        ("vision_end_token_id", after),
    ):
        wanted = getattr(config, name, None)
        if wanted is not None and mark and wanted != token_id(tokenizer, mark):
            raise ValueError(
                f"config.json has {name} {wanted}, but the tokenizer's {mark!r} is "
                f"{token_id(tokenizer, mark)}\n"
                "config.json and tokenizer are of different models; take both from one place"
            )


def _refuse_contradictions(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The files may name other ids than the library has: it numbers added tokens behind the others."""
    vocabulary = tokenizer.get_vocab()
    claims: dict[str, dict[str, int]] = {}
    config, added = folder / "tokenizer_config.json", folder / "added_tokens.json"
    if config.is_file():
        content = read_json(config)
        if content.get("auto_map"):
            raise ValueError(f"{config} names code of its own (auto_map), which v1lit does not run")
        decoder = content.get("added_tokens_decoder") or {}
        claims[config.name] = {entry["content"]: int(number) for number, entry in decoder.items()}
    if (folder / "tokenizer.json").is_file():
        entries = read_json(folder / "tokenizer.json").get("added_tokens") or []
        claims["tokenizer.json"] = {entry["content"]: entry["id"] for entry in entries}
    if added.is_file():
        claims[added.name] = read_json(added)
    for name, tokens in claims.items():
        for token, number in tokens.items():
            if vocabulary.get(token) != number:
                found = vocabulary.get(token, "no such token")
                raise ValueError(
                    f"{folder}: {name} says that {token!r} is {number}, but the tokenizer has {found}\n"
                    "the folder's files are of different tokenizers; take all from one place"
                )
