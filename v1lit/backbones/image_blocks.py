"""Images whose tokens see each other in both directions, in a decoder in which nothing else sees ahead.

A block is a run of image tokens; a pointer is text, also where it copies an image token. Padded rows get
masks from transformers. In packed rows a library that only knows causal attention and windows computes the
blocks in a pass of their own: their tokens see all keys up to the end of their block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.masking_utils import blockwise_overlay, create_causal_mask, sliding_window_overlay

from v1lit.backbones.segments import Segments, block_ids, send

FULL, SLIDING = "full_attention", "sliding_attention"
"""How transformers calls layers without and with a window in a config's `layer_types`."""


def windows(config: PreTrainedConfig) -> list[int | None]:
    """How many tokens each layer of a text config sees back, itself counted; None where all."""
    layers = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or [FULL] * layers
    return [config.sliding_window if kind == SLIDING else None for kind in kinds[:layers]]


def padded_masks(
    config: PreTrainedConfig,
    embeds: Tensor,
    attention_mask: Tensor | None,
    blocks: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """What a decoder takes as its mask for padded rows with image blocks: a mask for each kind of its layers.

    Args:
        config: of the text model.
        embeds: `[batch, tokens, width]`, of the first forward pass.
        attention_mask: `[batch, tokens]`, 1 where there is a token.
        blocks: first token and the one behind the last of each, through the flattened `[batch * tokens]`.

    Raises ValueError for a mask that was made for a cache of fixed size. Source: transformers,
    models/gemma3/modeling_gemma3.py, `create_masks_for_vision_model`.
    """
    if attention_mask is not None and not (isinstance(attention_mask, Tensor) and attention_mask.ndim == 2):
        raise ValueError(
            "images see themselves whole in this decoder, and masks that are made for a static cache leave "
            "that out; generate without cache_implementation"
        )
    rows, tokens = embeds.shape[:2]
    ids = send(block_ids(blocks, rows * tokens).view(rows, tokens), embeds.device)
    arguments = (config, embeds, attention_mask, None)
    whole = {"or_mask_function": blockwise_overlay(ids)}
    masks = {FULL: create_causal_mask(*arguments, **whole)}
    if any(window is not None for window in windows(config)):
        near = sliding_window_overlay(config.sliding_window)
        masks[SLIDING] = create_causal_mask(*arguments, **whole, and_mask_function=near)
    return masks


@dataclass(frozen=True)
class LookAhead:
    """The tokens of all blocks of a packed row, and the keys that each block's tokens see among them."""

    queries: Tensor
    """`[block tokens]`: indices of the tokens of all blocks, in order."""
    keys: Tensor
    """`[keys]`: of every block, indices of the tokens from the first that any of its own sees to its end."""
    bounds: tuple[Tensor, Tensor, int, int]
    """Ends of the blocks among queries and among keys, int32 `[blocks + 1]`, and the longest of each."""

    @classmethod
    def of(cls, segments: Segments, window: int | None, device: torch.device) -> LookAhead:
        """Those of a row in a layer with this window."""
        return _look_ahead(segments.lengths, segments.blocks, window, device)


# Every layer asks for the same, see `segments.py`.
@lru_cache(maxsize=4)
@torch.inference_mode(False)
def _look_ahead(
    lengths: tuple[int, ...], blocks: tuple[tuple[int, int], ...], window: int | None, device: torch.device
) -> LookAhead:
    ends = torch.tensor(lengths).cumsum(0)
    starts, stops = torch.tensor(blocks).T.contiguous()
    own = torch.searchsorted(ends, starts, right=True)
    first = (ends - torch.tensor(lengths))[own]
    if window is not None:
        first = torch.maximum(first, starts - window + 1)
    spans = [(starts.tolist(), stops.tolist()), (first.tolist(), stops.tolist())]
    indices = [
        torch.cat([torch.arange(one, other) for one, other in zip(*span, strict=True)]) for span in spans
    ]
    sizes = [stops - starts, stops - first]
    bounds = [torch.cat([size.new_zeros(1), size.cumsum(0)]).int() for size in sizes]
    longest = [int(size.max()) for size in sizes]
    queries, keys, *ends_of = (send(values, device) for values in (*indices, *bounds))
    return LookAhead(queries, keys, (ends_of[0], ends_of[1], longest[0], longest[1]))
