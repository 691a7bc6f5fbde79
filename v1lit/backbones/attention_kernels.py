"""Attention inside the segments of a row: one short function per library that can do it.

All take query `[tokens, heads, head dim]`, key and value `[tokens, kv heads, head dim]`, the segments, the
scale of the products and the window of the layer, and return `[tokens, heads, head dim]`. All compute what
`eager` does with `dense_mask`: a token sees itself and those before it in its segment, of these the nearest
`window` (itself counted) where the layer has one, and the later ones of its own image where the decoder lets
images see themselves whole.
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

from v1lit.backbones.image_blocks import LookAhead
from v1lit.backbones.segments import Segments

Attend = Callable[[Tensor, Tensor, Tensor, Segments, float, int | None], Tensor]
HALF = (torch.float16, torch.bfloat16)
CAUSAL_ONLY = "computes causal attention alone, without windows and images that see themselves whole"


# ---- kernels ----------------------------------------------------------------------------------------------


def dense_mask(segments: Segments, device: torch.device | str = "cpu", window: int | None = None) -> Tensor:
    """Which token (row) sees which of its segment, `[tokens, tokens]`.

    Itself and those before it, and those of its own block; with `window` none that is as far before it or
    further. Source: transformers 5.24, models/gemma3/modeling_gemma3.py, `create_masks_for_vision_model`.
    """
    owners, token = segments.owners(device), torch.arange(segments.tokens, device=device)
    seen = token[:, None] >= token
    if segments.blocks:
        ids = segments.block_ids(device)
        seen |= (ids[:, None] == ids) & (ids >= 0)
    if window is not None:
        seen &= token[:, None] - token < window
    return seen & (owners[:, None] == owners)


def eager(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None = None
) -> Tensor:
    """The reference: all scores of the row, `[heads, tokens, tokens]`, softmax in float32 or better."""
    key, value = _repeat_heads(key, query), _repeat_heads(value, query)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    scores = scores.masked_fill(~dense_mask(segments, query.device, window), float("-inf"))
    exact = torch.promote_types(scores.dtype, torch.float32)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1, dtype=exact).to(value.dtype), value)


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None = None
) -> Tensor:
    """The attention of torch itself, one call for each run of neighbouring segments of one length.

    Where more or less than the tokens before is seen, with a mask of the squared length of every segment.
    """
    runs = _runs(segments, window, query.device)
    masked = any(mask is not None for _, _, mask in runs)
    # On CUDA only half precision has a kernel that shares key heads, and none with a mask; others would build
    # all scores.
    if query.is_cuda and (masked or query.dtype not in HALF):
        key, value = _repeat_heads(key, query), _repeat_heads(value, query)
    shared = query.shape[1] != key.shape[1]
    # Split and not sliced: the gradients of all parts come back in one concatenation.
    parts = [x.split([length * times for length, times, _ in runs]) for x in (query, key, value)]
    outputs = []
    for (length, _, mask), *part in zip(runs, *parts, strict=True):
        q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in part)
        output = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=shared
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def flash(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None = None
) -> Tensor:
    """The variable-length attention of flash-attn."""
    from flash_attn import flash_attn_varlen_func

    def attend(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, causal: bool) -> Tensor:
        reach = (-1 if window is None else window - 1, -1)
        options = {"softmax_scale": scale, "causal": causal, "window_size": reach}
        output: Tensor = flash_attn_varlen_func(query, key, value, *bounds, **options)
        return output

    return in_two_passes(attend, query, key, value, segments, window)


def varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None = None
) -> Tensor:
    """The variable-length attention of torch; a window of nothing to the right is what makes it causal."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"scale": scale}
    if _takes_shared_heads(varlen_attn):
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    else:
        key, value = _repeat_heads(key, query), _repeat_heads(value, query)

    def attend(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, causal: bool) -> Tensor:
        reach = (-1 if window is None else window - 1, 0 if causal else -1)
        output = varlen_attn(query, key, value, *bounds, window_size=reach, **options)
        assert isinstance(output, Tensor)  # further results are not asked for
        return output

    # Newer versions of torch would take cuDNN, which builds a graph for every new geometry: for every row.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return in_two_passes(attend, query, key, value, segments, window)


def xformers(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None = None
) -> Tensor:
    """The memory-efficient attention of xformers with a block-diagonal mask; repeats shared key heads.

    Raises ValueError for a window and for image blocks: it has no mask of both.
    """
    if window is not None or segments.blocks:
        raise ValueError(f"model.backbone.attention=xformers: xformers {CAUSAL_ONLY}; use auto")
    from xformers import ops

    mask = _block_diagonal_mask(segments.lengths, query.device)
    rows = (query, _repeat_heads(key, query), _repeat_heads(value, query))
    output: Tensor = ops.memory_efficient_attention(*(x[None] for x in rows), attn_bias=mask, scale=scale)
    return output[0]


def flex(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None = None
) -> Tensor:
    """The flexible attention of torch, compiled on a GPU. On a CPU it has no backward pass."""
    mask = _block_mask(segments, window, query.device)
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    output: Tensor = _flex_attention(query.is_cuda)(
        q, k, v, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return output[0].transpose(0, 1)


@lru_cache(maxsize=2)
def _takes_shared_heads(varlen_attn: Any) -> bool:
    """Whether this torch's function knows of shared key heads; that of 2.11 does not."""
    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def in_two_passes(
    attend: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    window: int | None,
) -> Tensor:
    """All tokens as if none saw a later one, then those of image blocks once more, to the end of their block.

    attend: takes query, key, value, bounds of the queries' and of the keys' segments, the longest of each,
    and `causal`. Where there are more keys than queries, the last ones belong together.
    """
    bounds, longest = segments.bounds(query.device), segments.longest
    output = attend(query, key, value, bounds, bounds, longest, longest, causal=True)
    if not segments.blocks:
        return output
    ahead = LookAhead.of(segments, window, query.device)
    keys, values = (x.index_select(0, ahead.keys) for x in (key, value))
    images = attend(query.index_select(0, ahead.queries), keys, values, *ahead.bounds, causal=False)
    return output.index_copy(0, ahead.queries, images)


def _repeat_heads(x: Tensor, query: Tensor) -> Tensor:
    times = query.shape[1] // x.shape[1]
    return x if times == 1 else x.repeat_interleave(times, dim=1)


# Every layer asks for the same mask, see `segments.py` for what that takes.
@lru_cache(maxsize=2)
@torch.inference_mode(False)
def _block_diagonal_mask(lengths: tuple[int, ...], device: torch.device) -> Any:
    from xformers import ops

    return ops.fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens(list(lengths), device=device)


# One mask for layers with a window, and one for those without.
@lru_cache(maxsize=4)
@torch.inference_mode(False)
def _block_mask(segments: Segments, window: int | None, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    owners, tokens = segments.owners(device), segments.tokens

    def before(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (owners[row] == owners[column]) & (row >= column)

    visible = before
    if window is not None or segments.blocks:
        blocks, reach = segments.block_ids(device), tokens if window is None else window

        def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            seen = (row >= column) | ((blocks[row] == blocks[column]) & (blocks[row] >= 0))
            return (owners[row] == owners[column]) & seen & (row - column < reach)

    return create_block_mask(visible, None, None, tokens, tokens, device=str(device))


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def _runs(
    segments: Segments, window: int | None, device: torch.device
) -> tuple[tuple[int, int, Tensor | None], ...]:
    """Runs of neighbouring segments of one length: length, how many, and what they see if not what is before.

    Masks are `[segments, 1, tokens, tokens]`, of a run that has an image block or is longer than the window.
    """
    runs: list[tuple[int, int, Tensor | None]] = []
    first, starts = 0, [start for start, _ in segments.blocks]
    for length, run in groupby(segments.lengths):
        times = len(list(run))
        stop = first + length * times
        causal = window is None or window >= length
        mask = None
        if not causal or any(first <= start < stop for start in starts):
            token = torch.arange(length, device=device)
            ids = segments.block_ids(device)[first:stop].view(times, length)
            ahead = (ids[:, :, None] == ids[:, None]) & (ids >= 0)[:, None]
            seen = (token[:, None] >= token) | ahead
            mask = (seen if window is None else seen & (token[:, None] - token < window))[:, None]
        runs.append((length, times, mask))
        first = stop
    return tuple(runs)


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
    causal_only: bool = False
    """Whether it knows neither windows nor image blocks."""

    def reason(self, device: torch.device, dtype: torch.dtype, causal: bool = True) -> str | None:
        """Why it cannot train on this device in this precision; None if it can.

        causal: whether tokens see all those before them and no others; else there are windows or blocks.
        """
        if self.causal_only and not causal:
            return CAUSAL_ONLY
        if self.anywhere:
            return None
        if device.type != "cuda":
            return "needs a CUDA GPU"
        if self.half and dtype not in HALF:
            return f"needs bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
        return self.missing() or _trial(self.attend, device, dtype, causal)

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
def _trial(attend: Attend, device: torch.device, dtype: torch.dtype, causal: bool = True) -> str | None:
    """Why two segments cannot be trained on: operators may be absent from a build. None if they can."""
    new = partial(torch.ones, device=device, dtype=dtype, requires_grad=True)
    # A short one and a long one: libraries may have kernels of their own for rows of short ones.
    segments = Segments((2, 300), blocks=() if causal else ((100, 160),))
    query, key, value = (new(segments.tokens, heads, 64) for heads in (2, 1, 1))
    try:
        output = attend(query, key, value, segments, 0.125, None if causal else 80)
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
    "xformers": Kernel(xformers, module="xformers.ops", causal_only=True),
    "flex_attention": Kernel(flex, half=False),
    "eager": Kernel(eager, stock="eager", anywhere=True),
}
AUTO = ("flash_attention_2", "varlen", "xformers", "sdpa")
"""What `auto` tries, best first."""
