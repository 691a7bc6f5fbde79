"""What is copied: input embeddings of mixed sequences, and the image tokens kept while decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from v1lit.pointer.layout import TokenLayout


@dataclass
class PointerMemory:
    """Keys, values and mask of what a row's pointers choose from, kept beside the KV cache while decoding.

    Source: jun297/v1, v1/modeling_v1.py, lines 250-258 and 326-355, as two further layers of the cache.
    """

    keys: Tensor
    """`[batch, pointers, width]`: projected keys."""
    values: Tensor
    """`[batch, pointers, width]`: what stands at the input of a pointer to each."""
    mask: Tensor
    """`[batch, pointers]`: whether a row has that choice."""

    def __post_init__(self) -> None:
        lowest = torch.finfo(torch.float32).min
        zeros = torch.zeros_like(self.mask, dtype=torch.float32)
        self.floor = zeros.masked_fill(~self.mask, lowest)[:, None]
        """`[batch, 1, pointers]`: 0 where there is a choice, the lowest float where not, for all steps."""

    @property
    def bytes(self) -> int:
        """What it takes, however many layers the decoder has."""
        kept = (self.keys, self.values, self.mask, self.floor)
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def embed_with_copies(
    text: Tensor, values: Tensor, layout: TokenLayout, copies: Tensor | None = None
) -> Tensor:
    """`[batch, tokens, width]`: input embeddings of sequences of text, image tokens and pointers.

    `text` holds the embeddings of the text tokens, `values` `[image_tokens, width]` those of the image
    tokens of all sequences in order. Image tokens get their own value, pointers a copy of the one that they
    point at, or their row of `copies` `[choices, width]` where these are others. Source: jun297/v1,
    v1/modeling_v1.py, lines 98-121 and 207-220.
    """
    sources = layout.sources
    if copies is not None and copies is not values:
        sources = sources + len(values) * layout.copied
        values = torch.cat([values, copies])
    visual = values.index_select(0, sources)
    return text.flatten(0, 1).index_copy(0, layout.visual, visual).view_as(text)


def copy_values(text: Tensor, pointed: Tensor, memory: PointerMemory) -> Tensor:
    """`[batch, tokens, width]`: input embeddings of tokens that follow those of a cache.

    `text` holds the embeddings of the text tokens, `pointed` `[batch, tokens]` the index of the image token
    that each token points at, below 0 where it is text.
    """
    if memory.values.shape[1] == 0:
        return text
    indices = pointed.clamp(0, memory.values.shape[1] - 1)[..., None].expand(-1, -1, text.shape[-1])
    return torch.where((pointed >= 0)[..., None], memory.values.gather(1, indices), text)
