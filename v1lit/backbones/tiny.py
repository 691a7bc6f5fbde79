"""The small tokenizer that every tiny version shares: about a thousand tokens, any text, no download.

`tiny_tokenizer.json` is made by `tools/make_tiny_tokenizer.py`.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD = "<|endoftext|>"


@cache
def _tokenizer_json() -> str:
    return files("v1lit.backbones").joinpath("tiny_tokenizer.json").read_text(encoding="utf-8")


def tiny_tokenizer(stop: str = "<|im_end|>") -> PreTrainedTokenizerBase:
    """A fresh tiny tokenizer whose end-of-text token is `stop`, the one that ends an answer."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()),
        pad_token=PAD,
        eos_token=stop,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )
    token_id(tokenizer, stop)
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Id of a token that must exist. Raises ValueError where it does not."""
    id = tokenizer.get_vocab().get(token)
    if id is None:
        raise ValueError(f"the tokenizer has no token {token!r}; is it the tokenizer of this backbone?")
    return id
