"""The loss of a chunk of joint rows, and its gradient written over the logits, in plain torch.

For one row with logits z, classes K, target y, weight w, smoothing e and z-loss weight c:

    loss     = w (lse - (1 - e) z_y - e mean(z) + c lse^2),   lse = logsumexp(z)
    gradient = w ((1 + 2 c lse) softmax(z) - (1 - e) 1_y - e / K)

Absent pointers hold the lowest float, so they have no share in the softmax. What is written over them is of
no consequence: no product reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from v1lit.pointer.joint_loss.terms import LossOptions, wide

SCRATCH = {"cpu": 2**23, "cuda": 2**27}
"""Bytes of the softmax to hold: on a CPU what stays in its cache, on a GPU rows for all of its processors."""


class RowTerms(NamedTuple):
    """The terms of every row, each `[rows]`."""

    cross_entropy: Tensor
    z: Tensor
    predictions: Tensor

    @staticmethod
    def empty(rows: int, like: Tensor) -> RowTerms:
        cross_entropy, z = like.new_empty(2, rows, dtype=wide(like.dtype))
        return RowTerms(cross_entropy, z, like.new_empty(rows, dtype=torch.long))


class LogitRows(NamedTuple):
    """The logits of some joint rows, and what their loss depends on beside them."""

    logits: Tensor
    """`[rows, width]`; where there are weights, their gradient is written over them."""
    labels: Tensor
    """`[rows]`: column of the true class."""
    classes: Tensor
    """`[rows]`: how many columns count; the others, behind them, hold the lowest float."""
    weights: Tensor | None
    """`[rows]`"""
    vocabulary: int
    """How many columns count in every row."""
    options: LossOptions

    def part(self, rows: slice) -> LogitRows:
        logits, labels, classes = (tensor[rows] for tensor in self[:3])
        weights = None if self.weights is None else self.weights[rows]
        return LogitRows(logits, labels, classes, weights, self.vocabulary, self.options)


RowFunction = Callable[[LogitRows], RowTerms]
"""One implementation of the formulas of this module."""


def torch_rows(rows: LogitRows) -> RowTerms:
    """A `RowFunction` that takes a few rows at a time: one pass finds in the cache what the last one left."""
    logits = rows.logits
    dtype = wide(logits.dtype)
    count = max(1, SCRATCH.get(logits.device.type, 2**27) // (dtype.itemsize * logits.shape[1]))
    scratch = logits.new_empty(min(count, len(logits)), logits.shape[1], dtype=dtype)
    terms = RowTerms.empty(len(logits), logits)
    for start in range(0, len(logits), count):
        few = slice(start, min(start + count, len(logits)))
        terms_of_few = _few_rows(rows.part(few), scratch[: few.stop - start])
        for of_all, of_few in zip(terms, terms_of_few, strict=True):
            of_all[few] = of_few
    return terms


def _few_rows(rows: LogitRows, scratch: Tensor) -> RowTerms:
    """The same for few rows: `scratch` has the shape of their logits and the type of the softmax."""
    logits, labels, weights, options = rows.logits, rows.labels[:, None], rows.weights, rows.options
    smoothing = options.label_smoothing
    peak, predictions = logits.max(dim=1)
    target = logits.gather(1, labels)[:, 0].to(scratch.dtype)
    if smoothing:
        target = (1 - smoothing) * target + smoothing * _mean(rows, scratch.dtype)
    top = None if options.z_top_k is None else logits.topk(min(options.z_top_k, logits.shape[1]))
    torch.softmax(logits, 1, dtype=scratch.dtype, out=scratch)
    # The largest probability never vanishes: its logarithm is safe, and saves a pass of its own.
    lse = peak.to(scratch.dtype) - scratch.gather(1, predictions[:, None])[:, 0].log()
    z = lse if top is None else top.values.to(scratch.dtype).logsumexp(dim=1)
    if weights is not None:
        scale = weights if top is not None else weights * (1 + 2 * options.z_weight * lse)
        # In half precision the scratch takes the gradient: 0.999 - 1 is only exact before it is rounded.
        gradient = logits if logits.dtype == scratch.dtype else scratch
        torch.mul(scratch, scale[:, None], out=gradient)
        if smoothing:
            gradient.sub_((weights * smoothing / rows.classes)[:, None])
        if top is not None:
            share = top.values.to(scratch.dtype).softmax(dim=1)
            gradient.scatter_add_(1, top.indices, (weights * 2 * options.z_weight * z)[:, None] * share)
        gradient.scatter_add_(1, labels, (weights * (smoothing - 1))[:, None])
        if gradient is not logits:
            logits.copy_(gradient)
    return RowTerms(lse - target, z.square(), predictions)


def _mean(rows: LogitRows, dtype: torch.dtype) -> Tensor:
    """`[rows]`: the mean of the logits that count."""
    logits, _, classes, _, vocabulary, _ = rows
    pointers = logits[:, vocabulary:].to(dtype)
    column = torch.arange(vocabulary, logits.shape[1], device=logits.device)
    pointers = pointers.masked_fill(column >= classes[:, None], 0.0)
    return (logits[:, :vocabulary].sum(dim=1, dtype=dtype) + pointers.sum(dim=1)) / classes
