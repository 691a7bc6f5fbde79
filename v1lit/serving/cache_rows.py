"""Rows of a KV cache: put beside each other, though of different lengths, and taken out again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

STATES = ("conv_states", "recurrent_states")
"""What layers of linear attention keep, `[rows, ...]`: it has no axis of tokens."""


def append_rows(cache: Cache, other: Cache) -> None:
    """Put the rows of `other` behind those of `cache`; the shorter ones are padded on the left.

    Keys and values are `[rows, heads, tokens, head dim]`. Layers with a window hold its last tokens only.
    """
    tokens = max(cache_length(cache), cache_length(other))
    for layer, more in zip(cache.layers, other.layers, strict=True):
        for name in _attended(layer):
            parts = [_padded(getattr(one, name), _held(layer, tokens)) for one in (layer, more)]
            setattr(layer, name, torch.cat(parts))
        _note_length(layer, tokens)
        for name, key in _states(layer):
            own = getattr(layer, name)
            own[key] = torch.cat([own[key], getattr(more, name)[key]])


def keep_rows(cache: Cache, rows: Sequence[int], tokens: int) -> None:
    """Keep some rows alone, and of them the last `tokens` tokens."""

    def kept(values: Tensor) -> Tensor:
        return values.index_select(0, torch.tensor(rows, device=values.device))

    for layer in cache.layers:
        for name in _attended(layer):
            values = getattr(layer, name)
            setattr(layer, name, kept(values)[:, :, values.shape[2] - _held(layer, tokens) :])
        _note_length(layer, tokens)
        for name, key in _states(layer):
            getattr(layer, name)[key] = kept(getattr(layer, name)[key])


def cache_length(cache: Cache) -> int:
    """Tokens of the rows of a cache, padding included."""
    layers: list[Any] = [layer for layer in cache.layers if _attended(layer)]
    lengths = (layer.get_seq_length() for layer in layers)
    return max(lengths, default=0)


def cache_bytes(cache: Cache) -> int:
    """What the keys, values and states of a cache take."""
    tensors = [getattr(layer, name) for layer in cache.layers for name in _attended(layer)]
    tensors += [getattr(layer, name)[key] for layer in cache.layers for name, key in _states(layer)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _attended(layer: Any) -> tuple[str, ...]:
    """Names of what a layer attends to; none of one that has not been called or does not attend."""
    return ("keys", "values") if isinstance(getattr(layer, "keys", None), Tensor) else ()


def _states(layer: Any) -> Iterator[tuple[str, int]]:
    """Where a layer keeps its states: the name of a mapping, and a key in it."""
    for name in STATES:
        for key, state in getattr(layer, name, {}).items():
            if isinstance(state, Tensor):
                yield name, key


def _held(layer: Any, tokens: int) -> int:
    """How many of `tokens` tokens a layer holds."""
    window: int | None = getattr(layer, "sliding_window", None)
    return tokens if window is None else min(tokens, window - 1)


def _note_length(layer: Any, tokens: int) -> None:
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length = tokens


def _padded(values: Tensor, tokens: int) -> Tensor:
    """The last tokens of `[rows, heads, tokens, head dim]`, with zeros before them where there are fewer."""
    missing = tokens - values.shape[2]
    return F.pad(values, (0, 0, missing, 0)) if missing > 0 else values[:, :, -tokens:]
