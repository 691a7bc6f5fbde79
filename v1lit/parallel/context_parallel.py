"""Context parallelism: ranks that share a packed row, each with its part of the tokens in the decoder.

In attention, a rank exchanges its tokens of all heads for all tokens of its heads, and back; everything else
of a layer works token by token. Source: arXiv 2309.14509, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from transformers import PreTrainedConfig

from v1lit.backbones.attention import attend_segments
from v1lit.backbones.segments import Segments
from v1lit.parallel.tensor_parallel import IndivisibleError


@dataclass(frozen=True)
class RowShare:
    """The ranks that share the tokens of a row, and which of them this one is.

    All of them have the row's embeddings and get all of its states. Gradients are scaled for parameters that
    are averaged over these ranks: see `_Gather`.
    """

    group: dist.ProcessGroup
    own: int
    size: int

    def decode(self, decoder: nn.Module, inputs_embeds: Tensor, position_ids: Tensor, **inputs: Any) -> Any:
        """What the decoder returns for a row, of which every rank computes its part; waits for the others.

        Raises ValueError for padded rows, whose mask could not be divided.
        """
        segments: Segments | None = inputs.pop("segments", None)
        if segments is None:
            raise ValueError("rows are divided over ranks only where they are packed: give segment_lengths")
        gap = -segments.tokens % self.size
        if gap:  # a further segment, from which nothing is learned
            segments = replace(segments, lengths=(*segments.lengths, gap))
        part = segments.tokens // self.size
        embeds = F.pad(inputs_embeds, (0, 0, 0, gap)).narrow(-2, self.own * part, part)
        positions = F.pad(position_ids, (0, gap)).narrow(-1, self.own * part, part)
        decoded = decoder(
            inputs_embeds=embeds, position_ids=positions, segments=segments, attend=self.attend, **inputs
        )
        row: Tensor = _Gather.apply(decoded.last_hidden_state[0], self)
        decoded.last_hidden_state = row[None, : segments.tokens - gap]
        return decoded

    @torch.compiler.disable
    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        segments: Segments,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """As `attend_segments`, of this rank's part of the tokens: a head sees the whole row."""
        times = shared_key_heads(query.shape[1], key.shape[1], self.size)
        if times > 1:
            key, value = (x.repeat_interleave(times, dim=1) for x in (key, value))
        parts = [x.unflatten(1, (self.size, -1)) for x in (query, key, value)]
        own_heads: Tensor = _Exchange.apply(torch.cat(parts, dim=2).transpose(0, 1), self.group)
        heads = [part.shape[2] for part in parts]
        row = own_heads.flatten(0, 1).split(heads, dim=1)
        attended = attend_segments(*row, segments, scale, window)
        own_tokens: Tensor = _Exchange.apply(attended.unflatten(0, (self.size, -1)), self.group)
        return own_tokens.transpose(0, 1).flatten(1, 2)


def refuse_sharing(config: PreTrainedConfig, ranks: int) -> None:
    """Raise IndivisibleError where that many ranks cannot share rows of a model with this text config."""
    if ranks > 1 and "linear_attention" in (getattr(config, "layer_types", None) or ()):
        raise IndivisibleError(
            f"layers of linear attention of {config.model_type} carry a state from token to token, so ranks "
            "cannot share the tokens of a row\n"
            "give 1, and against long rows a smaller data.packing.length or model.backbone."
            "gradient_checkpointing"
        )
    if (heads := config.num_attention_heads) % ranks:
        raise IndivisibleError(
            f"num_attention_heads={heads} of the language model cannot be divided over {ranks} ranks\n"
            "give a number that divides it, or 1"
        )


def shared_key_heads(heads: int, key_heads: int, ranks: int) -> int:
    """How often every key head is repeated, so that ranks with `heads / ranks` heads have whole ones."""
    fits = (n for n in range(1, heads // key_heads) if not (key_heads * n % ranks or heads % (key_heads * n)))
    return next(fits, heads // key_heads)


class _Exchange(torch.autograd.Function):
    """`[ranks, ...]`: what this rank has for every other, for what every other has for it."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchange(parts, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _exchange(gradient, ctx.group), None


def _exchange(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    parts = parts.contiguous()
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return received


class _Gather(torch.autograd.Function):
    """`[tokens of this rank, hidden]` of all ranks, one behind another: `[tokens, hidden]`.

    The gradient that comes back is that of the whole loss, on every rank. Each parameter of the decoder gets
    the gradient of this rank's tokens, whose sum over ranks is that of the row, and their mean is taken: so
    it is multiplied by their number. It leaves the decoder for embeddings that every rank has computed, where
    the mean is taken as well, of zero for the tokens of others.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, share: RowShare) -> Tensor:
        ctx.share = share
        row = own.new_empty(share.size * own.shape[0], own.shape[1])
        dist.all_gather_into_tensor(row, own.contiguous(), group=share.group)
        return row

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.chunk(ctx.share.size)[ctx.share.own] * ctx.share.size, None
