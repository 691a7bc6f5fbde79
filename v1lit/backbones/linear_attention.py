"""Linear attention inside the segments of a packed row: the gated delta rule of Qwen3.5.

Such a layer carries a state from token to token, and its short convolution looks a few tokens back. In a
packed row both begin anew with every segment. What a token needs of itself alone, which are the large
matrices, is computed for the row as it is; only convolution and rule know of segments.

The module is a subclass of the stock one, put in place by changing the class of the existing instance, as in
`v1lit.backbones.qwen_vision`. Source: arXiv 2412.06464; transformers, models/qwen3_5/modeling_qwen3_5.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.qwen3_5 import modeling_qwen3_5 as stock

from v1lit.backbones.segments import Segments

CHUNK = 64
"""Tokens that the stock rule computes at once; it fills up every sequence to a multiple of it."""


class SegmentedDeltaNet(stock.Qwen3_5GatedDeltaNet):
    """Takes a packed row as well: with `segments`, each of them is what it is alone."""

    def forward(
        self, hidden_states: Tensor, *args: Any, segments: Segments | None = None, **inputs: Any
    ) -> Tensor:
        """`[batch, tokens, hidden]` to the same; a packed row is `[1, tokens, hidden]`.

        Raises ValueError if the segments do not fill the row.
        """
        if segments is None:
            alone: Tensor = super().forward(hidden_states, *args, **inputs)
            return alone
        if hidden_states.shape[:2] != (1, segments.tokens):
            raise ValueError(
                f"segments of {segments.tokens} tokens for states of shape {tuple(hidden_states.shape)}"
            )
        mixed = self._convolve(self.in_proj_qkv(hidden_states)[0], segments.lengths)
        parts = mixed.split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        widths = (self.head_k_dim, self.head_k_dim, self.head_v_dim)
        query, key, value = (x.unflatten(-1, (-1, width)) for x, width in zip(parts, widths, strict=True))
        shared = self.num_v_heads // self.num_k_heads
        query, key = (x.repeat_interleave(shared, dim=1) if shared > 1 else x for x in (query, key))
        beta = self.in_proj_b(hidden_states)[0].sigmoid()
        # In float32 as in the stock module: in float16 the decay could be infinite.
        step = F.softplus(self.in_proj_a(hidden_states)[0].float() + self.dt_bias)
        states = delta_rule(query, key, value, -self.A_log.float().exp() * step, beta, segments)
        gate = self.in_proj_z(hidden_states)[0].unflatten(-1, (-1, self.head_v_dim))
        states = self.norm(states.flatten(0, 1), gate.flatten(0, 1))
        output: Tensor = self.out_proj(states.view(1, segments.tokens, -1))
        return output

    # Lengths change with every row: compiled code would be compiled for each of them.
    @torch.compiler.disable
    def _convolve(self, row: Tensor, lengths: Sequence[int]) -> Tensor:
        """The short convolution of every segment, `[tokens, channels]`.

        Zeros before each are what a sequence alone has before it, so one call does for all.
        """
        before = self.conv_kernel_size - 1
        spread = torch.cat([F.pad(piece, (0, 0, before, 0)) for piece in row.split(list(lengths))])
        convolved = stock.causal_conv1d_fn(
            spread.T[None], self.conv1d.weight.squeeze(1), self.conv1d.bias, activation=self.activation
        )
        pieces = convolved[0].T.split([before + length for length in lengths])
        return torch.cat([piece[before:] for piece in pieces])


@torch.compiler.disable
def delta_rule(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, segments: Segments
) -> Tensor:
    """The gated delta rule from an empty state in every segment, `[tokens, heads, value width]`.

    Args:
        query: `[tokens, heads, key width]`.
        key: `[tokens, heads, key width]`; both are normalised here.
        value: `[tokens, heads, value width]`.
        decay: `[tokens, heads]`; logarithm of what is left of the state, at most 0.
        beta: `[tokens, heads]`; how much of the value that the key had is replaced, 0 to 1.
        segments: which examples the row has.
    """
    options = {"use_qk_l2norm_in_kernel": True}
    kernel = segment_kernel(query.device)
    if kernel is not None:
        row, bounds = (x[None] for x in (query, key, value)), segments.bounds(query.device).long()
        whole: Tensor = kernel(*row, g=decay[None], beta=beta[None], cu_seqlens=bounds, **options)[0]
        return whole[0]
    lengths = list(segments.lengths)
    pieces = [x.split(lengths) for x in (query, key, value, decay, beta)]
    states: list[Tensor] = [query] * len(lengths)
    for group in equal_chunks(lengths):
        longest = max(lengths[index] for index in group)
        q, k, v, g, b = (_padded([part[index] for index in group], longest) for part in pieces)
        rows, _ = stock.torch_chunk_gated_delta_rule(q, k, v, g=g, beta=b, **options)
        for index, row in zip(group, rows.unbind(), strict=True):
            states[index] = row[: lengths[index]]
    return torch.cat(states)


def equal_chunks(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of the segments that take the same number of chunks, group by group.

    Each group is one batch of the rule, in which nothing is computed that its members would not compute
    alone: filling up to the longest of all costs far more where lengths differ, a call for each where many
    are short.
    """
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(-(-length // CHUNK), []).append(index)
    return list(groups.values())


def _padded(pieces: Sequence[Tensor], longest: int) -> Tensor:
    """`[pieces, longest, ...]`, filled up with zeros at the end, where no token before sees them."""
    return torch.stack([F.pad(x, (0, 0) * (x.ndim - 1) + (0, longest - len(x))) for x in pieces])


def segment_kernel(device: torch.device) -> Callable[..., Any] | None:
    """The kernel of flash-linear-attention, which takes the ends of segments; None where it cannot run."""
    return _flash_linear_attention() if device.type == "cuda" else None


@cache
def _flash_linear_attention() -> Callable[..., Any] | None:
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    except Exception:  # absent, or built for another torch; transformers says that its own code is slow
        return None
    kernel: Callable[..., Any] = chunk_gated_delta_rule
    return kernel


def keep_segments_apart(model: PreTrainedModel) -> PreTrainedModel:
    """Let the linear attention of a Qwen3.5 take packed rows, in place; returns the model."""
    for module in model.modules():
        if type(module) is stock.Qwen3_5GatedDeltaNet:
            module.__class__ = SegmentedDeltaNet
    return model
