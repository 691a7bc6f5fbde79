"""`pointer_cross_entropy`: the loss of a model that points, by whichever implementation fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from v1lit.pointer.joint_loss.choice import choose_loss, compute
from v1lit.pointer.joint_loss.terms import (
    JointRows,
    LossOptions,
    PointerLoss,
    Pointers,
    Reduction,
    Terms,
    or_one,
    wide,
)


def pointer_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    pointer_start: int,
    pointers: Pointers | None = None,
    options: LossOptions | None = None,
    *,
    gate: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> PointerLoss:
    """Cross-entropy over `[vocabulary logits[:V] ; pointer logits]`, `V = pointer_start`, and a z-loss.

    Position i with weight w_i has the loss `w_i (CE_i + z_weight * logsumexp_i^2)`. With "mean" and "sum",
    gradients are computed in the forward pass, for a backward pass that comes once; nothing waits for the
    device. Source: jun297/v1, v1/modeling_v1.py, lines 363-378 and 431-510, where the z-loss has no weights.

    Args:
        hidden: `[positions, hidden]`; last hidden states of the supervised positions. Their type is that of
            the products; under autocast, autocast's.
        head: `[vocabulary, hidden]`.
        labels: `[positions]`; a vocabulary id, or `V + j` for the j-th image token of the position's
            sequence. Positions where nothing is learned (-100) are to be left out.
        gate: `[positions, 1]`; g, which makes the logits `(1 - g) vocabulary` and `g pointers`.
        weights: `[positions]`; constants, None for ones.
        normalizer: what "mean" divides the sum by, in place of the sum of the weights; `[]`, or `[2]` (text,
            pointers) for separate losses. With the weights of a whole optimizer step divided by its parts,
            the gradients of the parts average to those of one big batch.

    Raises ValueError for shapes that do not fit and options that exclude each other.
    """
    options = options or LossOptions()
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    dtype = wide(hidden.dtype)
    constants = torch.ones_like(labels, dtype=dtype) if weights is None else weights.detach().to(dtype)
    rows = JointRows(hidden, head, labels, constants, pointer_start, pointers, gate)
    _check_rows(rows)
    _check_reduction(options, reduction, normalizer)
    choice = choose_loss(options.implementation, hidden.device, hidden.dtype, options.z_top_k)
    options = replace(options, implementation=choice.name)
    with torch.autocast(hidden.device.type, enabled=False):
        if options.separate:
            parts, predictions = _separate(rows, options, reduction != "none")
        else:
            terms = compute(rows, options, reduction != "none")
            parts, predictions = {"joint": (rows, terms)}, terms.predictions
    return _total(parts, predictions, options, reduction, normalizer)


Parts = dict[str, tuple[JointRows, Terms]]


def _separate(rows: JointRows, options: LossOptions, reduce: bool) -> tuple[Parts, Tensor]:
    """Two softmaxes, over all positions, in each of which the positions of the other have no weight.

    Source: jun297/v1, v1/modeling_v1.py, lines 432-474.
    """
    start, is_pointer = rows.vocabulary, rows.labels >= rows.vocabulary
    text = replace(
        rows,
        labels=rows.labels.masked_fill(is_pointer, 0),
        weights=rows.weights.masked_fill(is_pointer, 0.0),
        vocabulary=len(rows.head),
        pointers=None,
    )
    pointing = replace(
        rows,
        labels=(rows.labels - start).clamp(min=0),
        weights=rows.weights.masked_fill(~is_pointer, 0.0),
        vocabulary=0,
    )
    parts: Parts = {"text": (text, compute(text, options, reduce))}
    if rows.pointers is not None and rows.pointers.longest:
        parts["pointer"] = (pointing, compute(pointing, options, reduce))
    else:
        parts["pointer"] = (pointing, _nothing(pointing, reduce))
    with torch.no_grad():
        predictions = compute(rows, options, True).predictions
    return parts, predictions


def _nothing(rows: JointRows, reduce: bool) -> Terms:
    """The terms of pointers where there is no image; with a gradient, which is zero, for every tensor."""
    zeros = torch.zeros_like(rows.weights)
    value = zeros.sum() if reduce else zeros
    if rows.pointers is not None:
        value = value + 0.0 * rows.pointers.queries.sum() + 0.0 * rows.pointers.keys.sum()
    return Terms(value, zeros, zeros, torch.zeros_like(rows.labels))


def _total(
    parts: Parts, predictions: Tensor, options: LossOptions, reduction: Reduction, normalizer: Any
) -> PointerLoss:
    """The parts put together: their values are weighted sums, or weighted losses of every position."""
    weights = {name: rows.weights for name, (rows, _) in parts.items()}
    values = {name: rows.weights * terms.cross_entropy for name, (rows, terms) in parts.items()}
    if options.z_weight > 0:
        rows, terms = parts["joint"]
        values["z"], weights["z"] = rows.weights * terms.z, rows.weights
    totals = [terms.value for _, terms in parts.values()]
    loss = PointerLoss(totals[0], values, weights, predictions)
    if reduction == "mean":
        divisors = [loss.counts[name] for name in parts]
        if normalizer is not None:
            divisors = list(torch.as_tensor(normalizer).reshape(len(parts)).unbind())
        totals = [total / or_one(by.to(total.dtype)) for total, by in zip(totals, divisors, strict=True)]
    loss.loss = torch.stack(totals).sum(dim=0)
    return loss


def _check_rows(rows: JointRows) -> None:
    positions, pointers = len(rows.labels), rows.pointers
    if rows.labels.is_floating_point() or rows.labels.dtype == torch.bool:
        raise ValueError(f"labels are ids, not {rows.labels.dtype}")
    expected: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("hidden", rows.hidden, (positions, rows.head.shape[-1])),
        ("labels", rows.labels, (positions,)),
        ("gate", rows.gate, (positions, 1)),
        ("weights", rows.weights, (positions,)),
    ]
    if pointers is not None:
        width = pointers.keys.shape[-1]
        expected += [
            ("pointers.queries", pointers.queries, (positions, width)),
            ("pointers.keys", pointers.keys, (sum(pointers.image_tokens), width)),
        ]
        if len(pointers.positions) != len(pointers.image_tokens) or sum(pointers.positions) != positions:
            raise ValueError(
                f"{positions} positions, but pointers.positions counts {sum(pointers.positions)} in "
                f"{len(pointers.positions)} sequences and pointers.image_tokens {len(pointers.image_tokens)} "
                "sequences; both need an entry for every sequence"
            )
    for name, tensor, shape in expected:
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; the others ask for {list(shape)}")
    start, vocabulary = rows.vocabulary, len(rows.head)
    if not 0 < start <= vocabulary:
        raise ValueError(f"pointer_start is {start}; it must lie between 1 and the head's {vocabulary}")


def _check_reduction(options: LossOptions, reduction: str, normalizer: Any) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; allowed: mean, sum, none")
    if normalizer is None:
        return
    if reduction != "mean":
        raise ValueError(f"a normalizer divides a mean; reduction is {reduction!r}")
    shape, wanted = list(torch.as_tensor(normalizer).shape), [2] * options.separate
    if shape != wanted:
        kind = "separate losses" if options.separate else "a joint loss"
        raise ValueError(f"the normalizer of {kind} has shape {wanted}; this has {shape}")
