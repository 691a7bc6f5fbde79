"""What every tiny version shares: its sizes, and a tokenizer of about a thousand tokens; no download.

`tiny_tokenizer.json` is made by `tools/make_tiny_tokenizer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from v1lit.backbones.image_options import check_positive
from v1lit.errors import OptionError, name_allowed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD = "<|endoftext|>"
SIZES: Mapping[str, Any] = {
    "hidden_size": 64,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "intermediate_size": 128,
    "vision_hidden_size": 32,
    "vision_layers": 2,
    "vision_heads": 2,
    "vision_intermediate_size": 64,
    "patch_size": 14,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
"""Of all families; each has further ones of its own."""


def full_sizes(family: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All sizes of a family's tiny version, defaults filled in.

    Raises OptionError for one that the family does not have, and for widths that no heads divide.
    """
    for key in given:
        if key not in defaults:
            why = f"{family} has no such size; {name_allowed(key, defaults)}"
            raise OptionError(key, given[key], why)
    full = {**defaults, **given}
    for hidden, heads in (
        ("hidden_size", "heads"),
        ("vision_hidden_size", "vision_heads"),
        ("heads", "kv_heads"),
    ):
        check_positive(hidden, full[hidden])
        check_positive(heads, full[heads])
        if full[hidden] % full[heads]:
            raise OptionError(hidden, full[hidden], f"it must be a multiple of {heads}={full[heads]}")
    return full


@cache
def _tokenizer_json() -> str:
    return files("v1lit.backbones").joinpath("tiny_tokenizer.json").read_text(encoding="utf-8")


def tiny_tokenizer(stop: str = "<|im_end|>", marks: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """A fresh tiny tokenizer whose end-of-text token is `stop`, the one that ends an answer.

    It knows the marks of several families; others of these `marks` get ids behind its own.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    text = Tokenizer.from_str(_tokenizer_json())
    known = text.get_vocab()
    new = [AddedToken(mark, special=True, normalized=False) for mark in marks if mark not in known]
    text.add_special_tokens(new)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=text,
        pad_token=PAD,
        eos_token=stop,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )
    token_id(tokenizer, stop)
    return tokenizer


def text_sizes(tokenizer: PreTrainedTokenizerBase, sizes: Mapping[str, Any], stop: str) -> dict[str, Any]:
    """Arguments of a tiny text decoder's config, from the sizes of a tiny version."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes["hidden_size"],
        "intermediate_size": sizes["intermediate_size"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "max_position_embeddings": 32768,
        "initializer_range": sizes["initializer_range"],
        "eos_token_id": token_id(tokenizer, stop),
        "pad_token_id": tokenizer.pad_token_id,
    }


def vision_sizes(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a tiny vision tower's config, from the sizes of a tiny version."""
    return {
        "hidden_size": sizes["vision_hidden_size"],
        "intermediate_size": sizes["vision_intermediate_size"],
        "num_hidden_layers": sizes["vision_layers"],
        "num_attention_heads": sizes["vision_heads"],
        "image_size": sizes["image_size"],
        "patch_size": sizes["patch_size"],
    }


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Id of a token that must exist. Raises ValueError where it does not."""
    id = tokenizer.get_vocab().get(token)
    if id is None:
        raise ValueError(f"the tokenizer has no token {token!r}; is it the tokenizer of this backbone?")
    return id
