"""The loss of a chunk of joint rows, and its gradient written over the logits, by one Triton kernel.

The formulas are those of `rows.py`. A program takes one row and reads it twice: for maximum, sum of
exponentials (arXiv 1805.02867), most likely class and, with label smoothing, mean; and to write the gradient.
All in float32.

Masks are against the width of the buffer, a multiple of 16 on a GPU, so that loads and stores stay wide;
absent pointers need none, since they hold the lowest float.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from v1lit.pointer.joint_loss.rows import LogitRows, RowTerms

BLOCK = 2**13
"""Columns that a program holds at once, at most: by 16 warps, so that a processor works on several rows."""
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


def triton_rows(rows: LogitRows) -> RowTerms:
    """The kernel as a `RowFunction`; see `rows.py`."""
    logits, labels, classes, weights, _, options = rows
    assert options.z_top_k is None, "choose_loss refuses this"
    terms = RowTerms.empty(len(logits), logits)
    labels = labels.contiguous()
    block = min(triton.next_power_of_2(logits.shape[1]), BLOCK)
    _row[(len(logits),)](
        logits,
        logits.stride(0),
        logits.shape[1],
        labels,
        classes,
        labels if weights is None else weights.contiguous(),
        *terms,
        options.z_weight,
        options.label_smoothing,
        SMOOTH=options.label_smoothing > 0,
        GRADIENT=weights is not None,
        BLOCK=block,
        num_warps=max(4, block // 512),
    )
    return terms


@triton.jit
def _row(  # type: ignore[no-untyped-def]
    logits,
    stride,
    width,
    labels,
    classes,
    weights,
    cross_entropies,
    squares,
    predictions,
    z_weight,
    smoothing,
    SMOOTH: tl.constexpr,  # noqa: N803
    GRADIENT: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    label = tl.load(labels + row)
    count = tl.load(classes + row)
    target = tl.load(logits + label).to(tl.float32)

    peak = tl.full((), LOWEST, tl.float32)
    best = tl.full((), 0, tl.int64)
    total = tl.full((), 0.0, tl.float32)
    plain = tl.full((), 0.0, tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z = _load(logits + columns, columns < width)
        highest, where = tl.max(z, axis=0, return_indices=True, return_indices_tie_break_left=True)
        best = tl.where(highest > peak, start + where, best)
        new = tl.maximum(peak, highest)
        total = total * tl.exp(peak - new) + tl.sum(tl.exp(z - new), axis=0)
        peak = new
        if SMOOTH:
            plain += tl.sum(tl.where(columns < count, z, 0.0), axis=0)

    lse = peak + tl.log(total)
    loss = lse - target
    if SMOOTH:
        loss = lse - (1 - smoothing) * target - smoothing * plain / count
    tl.store(cross_entropies + row, loss)
    tl.store(squares + row, lse * lse)
    tl.store(predictions + row, best)

    if GRADIENT:
        weight = tl.load(weights + row)
        scale = weight * (1 + 2 * z_weight * lse)
        even = weight * smoothing / count
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            z = _load(logits + columns, columns < width)
            gradient = scale * tl.exp(z - lse) - even
            gradient -= tl.where(columns == label, weight * (1 - smoothing), 0.0)
            tl.store(logits + columns, gradient.to(logits.dtype.element_ty), mask=columns < width)


@triton.jit
def _load(pointers, there):  # type: ignore[no-untyped-def]
    """Logits in float32; the lowest float is put in only then, as a shorter type would make it infinite."""
    return tl.where(there, tl.load(pointers, mask=there, other=0.0).to(tl.float32), LOWEST)
