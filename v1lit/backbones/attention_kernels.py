"""Causal attention inside the segments of a row: one short function per library that can do it.

All take query `[tokens, heads, head dim]`, key and value `[tokens, kv heads, head dim]`, the segments and the
scale of the products, and return `[tokens, heads, head dim]`. All compute what `eager` does with
`dense_mask`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from v1lit.backbones.segments import Segments

Attend = Callable[[Tensor, Tensor, Tensor, Segments, float], Tensor]
HALF = (torch.float16, torch.bfloat16)


# ---- kernels ----------------------------------------------------------------------------------------------


def dense_mask(segments: Segments, device: torch.device | str = "cpu") -> Tensor:
    """Which token (row) sees which: itself and those before it in its segment, `[tokens, tokens]`."""
    owners = segments.owners(device)
    return (owners[:, None] == owners).tril()


def eager(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """The reference: all scores of the row, `[heads, tokens, tokens]`, softmax in float32 or better."""
    key, value = _repeat_heads(key, query), _repeat_heads(value, query)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    scores = scores.masked_fill(~dense_mask(segments, query.device), float("-inf"))
    exact = torch.promote_types(scores.dtype, torch.float32)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1, dtype=exact).to(value.dtype), value)


def sdpa(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """The attention of torch itself, one call for each run of neighbouring segments of one length."""
    # On CUDA only half precision has a kernel that shares key heads; others would build all scores.
    if query.is_cuda and query.dtype not in HALF:
        key, value = _repeat_heads(key, query), _repeat_heads(value, query)
    shared = query.shape[1] != key.shape[1]
    runs = [(length, len(list(run))) for length, run in groupby(segments.lengths)]
    # Split and not sliced: the gradients of all parts come back in one concatenation.
    parts = [x.split([length * times for length, times in runs]) for x in (query, key, value)]
    outputs = []
    for (length, _), *part in zip(runs, *parts, strict=True):
        q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in part)
        output = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=shared)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def flash(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """The variable-length attention of flash-attn."""
    from flash_attn import flash_attn_varlen_func

    bounds, longest = segments.bounds(query.device), segments.longest
    output: Tensor = flash_attn_varlen_func(
        query, key, value, bounds, bounds, longest, longest, softmax_scale=scale, causal=True
    )
    return output


def varlen(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """The variable-length attention of torch; a window of nothing to the right is what makes it causal."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = segments.bounds(query.device), segments.longest
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0)}
    if _takes_shared_heads(varlen_attn):
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    else:
        key, value = _repeat_heads(key, query), _repeat_heads(value, query)
    # Newer versions of torch would take cuDNN, which builds a graph for every new geometry: for every row.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        output = varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)
    assert isinstance(output, Tensor)  # further results are not asked for
    return output


def xformers(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """The memory-efficient attention of xformers with a block-diagonal mask; repeats shared key heads."""
    from xformers import ops

    mask = _block_diagonal_mask(segments.lengths, query.device)
    rows = (query, _repeat_heads(key, query), _repeat_heads(value, query))
    output: Tensor = ops.memory_efficient_attention(*(x[None] for x in rows), attn_bias=mask, scale=scale)
    return output[0]


def flex(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """The flexible attention of torch, compiled on a GPU. On a CPU it has no backward pass."""
    mask = _block_mask(segments.lengths, query.device)
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    output: Tensor = _flex_attention(query.is_cuda)(
        q, k, v, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return output[0].transpose(0, 1)


@lru_cache(maxsize=2)
def _takes_shared_heads(varlen_attn: Any) -> bool:
    """Whether this torch's function knows of shared key heads; that of 2.11 does not."""
    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _repeat_heads(x: Tensor, query: Tensor) -> Tensor:
    times = query.shape[1] // x.shape[1]
    return x if times == 1 else x.repeat_interleave(times, dim=1)


# Every layer asks for the same mask, see `segments.py` for what that takes.
@lru_cache(maxsize=2)
@torch.inference_mode(False)
def _block_diagonal_mask(lengths: tuple[int, ...], device: torch.device) -> Any:
    from xformers import ops

    return ops.fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens(list(lengths), device=device)


@lru_cache(maxsize=2)
@torch.inference_mode(False)
def _block_mask(lengths: tuple[int, ...], device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    segments = Segments(lengths)
    owners = segments.owners(device)

    def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (owners[row] == owners[column]) & (row >= column)

    tokens = segments.tokens
    return create_block_mask(visible, None, None, tokens, tokens, device=str(device))


@lru_cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


# ---- what runs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A way to attend inside segments."""

    attend: Attend
    """Attends."""
    stock: str = "sdpa"
    """The implementation of transformers for the vision tower and for generation beside it."""
    anywhere: bool = False
    """Whether it runs on every device and in every precision."""
    module: str = "torch"
    """The module that it needs."""
    half: bool = True
    """Whether it needs half precision."""

    def reason(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot train on this device in this precision; None if it can."""
        if self.anywhere:
            return None
        if device.type != "cuda":
            return "needs a CUDA GPU"
        if self.half and dtype not in HALF:
            return f"needs bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
        return self.missing() or _trial(self.attend, device, dtype)

    def missing(self) -> str | None:
        """Why its package cannot be imported; None if it can."""
        try:
            import_module(self.module)
        except Exception as error:  # a package built for another torch fails in ways of its own
            name = str(getattr(error, "name", "")).partition(".")[0]
            package = self.module.partition(".")[0]
            absent = isinstance(error, ModuleNotFoundError) and name == package
            hint = f"is not installed (pip install 'v1lit[{package.replace('_', '-')}]')"
            return hint if absent else f"fails: {_first_line(error)}"
        return None


@lru_cache(maxsize=32)
@torch.inference_mode(False)
@torch.enable_grad()
def _trial(attend: Attend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why two segments cannot be trained on: operators may be absent from a build. None if they can."""
    new = partial(torch.ones, device=device, dtype=dtype, requires_grad=True)
    # A short one and a long one: libraries may have kernels of their own for rows of short ones.
    segments = Segments((2, 300))
    query, key, value = (new(segments.tokens, heads, 64) for heads in (2, 1, 1))
    try:
        output = attend(query, key, value, segments, 0.125)
        output.sum().backward()
    except Exception as error:
        return f"fails: {_first_line(error)}"
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


KERNELS: dict[str, Kernel] = {
    "sdpa": Kernel(sdpa, anywhere=True),
    "flash_attention_2": Kernel(flash, stock="flash_attention_2", module="flash_attn"),
    "varlen": Kernel(varlen, module="torch.nn.attention.varlen"),
    "xformers": Kernel(xformers, module="xformers.ops"),
    "flex_attention": Kernel(flex, half=False),
    "eager": Kernel(eager, stock="eager", anywhere=True),
}
AUTO = ("flash_attention_2", "varlen", "xformers", "sdpa")
"""What `auto` tries, best first."""
