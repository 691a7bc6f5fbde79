"""What is copied: input embeddings of mixed sequences, and the image tokens kept while decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from v1lit.pointer.layout import TokenLayout


@dataclass
class PointerMemory:
    """Keys, values and mask of the image tokens of every row, kept beside the KV cache while decoding."""

    keys: Tensor
    """Projected keys, `[batch, pointers, width]`."""
    values: Tensor
    """Input embeddings of the image tokens, `[batch, pointers, hidden]`."""
    mask: Tensor
    """True where a row has that image token, `[batch, pointers]`."""


def embed_with_copies(text: Tensor, values: Tensor, layout: TokenLayout) -> Tensor:
    """Input embeddings of mixed sequences, `[rows, tokens, hidden]`.

    `text` holds the embeddings of the text tokens, `values` `[image_tokens, hidden]` those of the image
    tokens of all sequences in order. Image tokens get their own value, pointers a copy of the one that they
    point at.
    """
    visual = values.index_select(0, layout.sources)
    return text.flatten(0, 1).index_copy(0, layout.visual, visual).view_as(text)


def copy_values(text: Tensor, pointed: Tensor, memory: PointerMemory) -> Tensor:
    """Input embeddings of tokens that follow those of a cache, `[batch, tokens, hidden]`.

    `text` holds the embeddings of the text tokens, `pointed` `[batch, tokens]` the index of the image token
    that each token points at, below 0 where it is text.
    """
    if memory.values.shape[1] == 0:
        return text
    indices = pointed.clamp(0, memory.values.shape[1] - 1)[..., None].expand(-1, -1, text.shape[-1])
    return torch.where((pointed >= 0)[..., None], memory.values.gather(1, indices), text)
