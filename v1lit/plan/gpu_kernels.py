"""Functions that keep other memory on a GPU than on a CPU, where a step on paper runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from v1lit.backbones import linear_attention
from v1lit.backbones.attention_kernels import KERNELS, Kernel, in_two_passes
from v1lit.backbones.image_blocks import LookAhead
from v1lit.backbones.segments import Segments
from v1lit.pointer.joint_loss import choice as loss_choice
from v1lit.pointer.joint_loss import chunked
from v1lit.pointer.joint_loss.rows import LogitRows, RowTerms
from v1lit.pointer.model import PointAndCopyModel


@dataclass(frozen=True)
class Compute:
    """In which types a step computes, and on what."""

    weights: torch.dtype
    """Type of the weights that modules compute with."""
    autocast: torch.dtype | None
    """Type of the products under autocast; None without."""
    gpu: bool
    """Whether a GPU's kernels are meant: its attention, its loss, its list of autocast."""
    learned: torch.dtype | None = None
    """Type of the weights that learn, where that is another."""

    @property
    def products(self) -> torch.dtype:
        """Type of the products."""
        return self.autocast or self.weights


class _Flash(torch.autograd.Function):
    """Attention that keeps queries, keys, values, output and a sum per row, as flash attention does."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # The output's memory lies as [batch, tokens, heads, width].
        output = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    output: Tensor = _Flash.apply(query, key, value)
    return output


def _flash_in_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None = None
) -> Tensor:
    """As kernels of a GPU compute windows and image blocks: no masks, and blocks in a pass of their own."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, causal: bool) -> Tensor:
        output: Tensor = _Flash.apply(query, key, value)
        return output

    with _disable_current_modes():  # a few indices, made once for all layers
        segments.bounds(query.device)
        if segments.blocks:
            LookAhead.of(segments, window, query.device)
    return in_two_passes(attend, query, key, value, segments, window)


class _DeltaRule(torch.autograd.Function):
    """The gated delta rule, keeping what the kernel of flash-linear-attention keeps of a row.

    Source: flash-linear-attention, fla/ops/gated_delta_rule/chunk.py, `ChunkGatedDeltaRuleFunction.forward`.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
        norms = [x.new_empty(x.shape[:-1], dtype=torch.float32) for x in (query, key)]
        # Queries and keys once more, normalised; of every chunk the products of its keys, and summed decays.
        normal = [torch.empty_like(x) for x in (query, key)]
        chunks = key.new_empty(*beta.shape, linear_attention.CHUNK)
        ctx.save_for_backward(*normal, *norms, value, torch.empty_like(decay), beta, chunks)
        ctx.kinds = [(x.shape, x.dtype, x.device) for x in (query, key, value, decay, beta)]
        return torch.empty_like(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return tuple(torch.empty(shape, dtype=dtype, device=at) for shape, dtype, at in ctx.kinds)


def _delta_rule(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **options: Any
) -> tuple[Tensor, None]:
    return _DeltaRule.apply(query, key, value, g, beta), None


def _norm_in_float32(
    input: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 0
) -> Tensor:
    """Autocast's list for CUDA has it in float32; the list for CPUs leaves it in the type of its input."""
    if torch.is_autocast_enabled("cpu"):
        input = input.float()
        weight, bias = (x if x is None else x.float() for x in (weight, bias))
    return torch.layer_norm(input, shape, weight, bias, eps)


@contextmanager
def kernels_of(model: PointAndCopyModel, compute: Compute) -> Iterator[None]:
    """The loss as it would keep memory: its kernels cannot be called, or tried, without memory."""
    options = model.pointer_options
    implementation = "reference" if options.loss_implementation == "reference" else "chunked"
    model.config.pointer["loss_implementation"] = implementation
    model.pointer_options = model.config.pointer_options
    half = compute.products != torch.float32
    in_place = compute.gpu and half and options.loss_implementation in ("auto", "triton")
    with ExitStack() as stack:
        if compute.gpu:
            stack.enter_context(patch.dict(chunked.BUFFER, cpu=chunked.BUFFER["cuda"]))
            stack.enter_context(patch.object(chunked, "_add_product", lambda *args: None))
            stack.enter_context(patch.object(F, "scaled_dot_product_attention", _flash_attention))
            stack.enter_context(patch.object(F, "layer_norm", _norm_in_float32))
            if not model.is_causal:
                flash = Kernel(_flash_in_segments, anywhere=True)
                stack.enter_context(patch.dict(KERNELS, {model.attention: flash}))
            stack.enter_context(patch.object(linear_attention, "segment_kernel", lambda device: _delta_rule))
        else:
            stack.enter_context(patch.object(chunked, "_adds_in_place", lambda *args: False))
        if in_place and options.z_top_k is None:
            stack.enter_context(patch.object(loss_choice, "torch_rows", _rows_in_place))
        yield


def _rows_in_place(rows: LogitRows) -> RowTerms:
    return RowTerms.empty(len(rows.labels), rows.logits)
