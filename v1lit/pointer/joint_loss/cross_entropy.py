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
    *,
    gate: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_weight: float = 0.0,
    z_top_k: int | None = None,
    separate: bool = False,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    implementation: str = "auto",
    chunk: int | None = None,
) -> PointerLoss:
    """Cross-entropy over `[vocabulary logits[:V] ; pointer logits]`, `V = pointer_start`, and a z-loss.

    Position i with weight w_i has the loss `w_i (CE_i + z_weight * logsumexp_i^2)`. Reduction "mean" is the
    sum of these over `normalizer`, or over the sum of the weights; give the weights of a whole optimizer step
    divided by its parts, and the gradients of the parts average to those of one big batch. Formulas: arXiv
    2505.18842; here the z-loss is over all logits unless `z_top_k` is given, and has the weights too.

    hidden `[positions, hidden]`: last hidden states of the supervised positions, whose type is that of the
    products (under autocast, autocast's). head `[vocabulary, hidden]`. labels `[positions]`: a vocabulary id,
    or `V + j` for the j-th image token of the position's sequence; positions where nothing is learned (-100)
    are to be left out. gate `[positions, 1]`: g, which makes the
    logits `(1 - g) vocabulary` and `g pointers`. weights `[positions]`: constants, None for ones.
    label_smoothing: probability spread evenly over the classes that a position has.

    separate: text positions over all rows of the head, pointer positions over the pointers, two means added;
    `normalizer` is then a pair (text, pointers), and there is no z-loss. It costs a third more than the joint
    loss, for the predictions, which are always those of the joint softmax.

    implementation: see `choose_loss`. chunk: positions at a time, None for a good number. No implementation
    but `reference` ever holds `[positions, vocabulary]`, or waits for the device. With "mean" and "sum" they
    compute gradients in the forward pass, for a backward pass that comes once.

    Raises ValueError for shapes that do not fit and options that exclude each other.
    """
    _check(hidden, head, labels, pointer_start, pointers, gate, weights)
    _check_options(label_smoothing, z_weight, separate, reduction, normalizer, chunk)
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    name = choose_loss(implementation, hidden.device, hidden.dtype, z_top_k).name
    options = LossOptions(label_smoothing, z_weight, z_top_k)
    known = torch.ones_like(labels, dtype=wide(hidden.dtype)) if weights is None else weights.detach()
    known = known.to(wide(hidden.dtype))
    rows = JointRows(hidden, head, labels, known, pointer_start, pointers, gate)
    reduce = reduction != "none"
    with torch.autocast(hidden.device.type, enabled=False):
        parts, predictions = (_separate if separate else _joint)(name, rows, options, reduce, chunk)
    counts = {part: one.weights.sum() for part, (one, _) in parts.items()}
    sums = {part: (one.weights * terms.cross_entropy).sum() for part, (one, terms) in parts.items()}
    if z_weight > 0:
        sums["z"], counts["z"] = (rows.weights * parts["joint"][1].z).sum(), counts["joint"]
    loss = _reduce({part: terms.value for part, (_, terms) in parts.items()}, counts, reduction, normalizer)
    return PointerLoss(loss, sums, counts, predictions)


Parts = dict[str, tuple[JointRows, Terms]]


def _joint(
    name: str, rows: JointRows, options: LossOptions, reduce: bool, chunk: int | None
) -> tuple[Parts, Tensor]:
    """One softmax over all."""
    terms = compute(name, rows, options, reduce, chunk)
    return {"joint": (rows, terms)}, terms.predictions


def _separate(
    name: str, rows: JointRows, options: LossOptions, reduce: bool, chunk: int | None
) -> tuple[Parts, Tensor]:
    """Two, over all positions, in each of which the positions of the other have no weight."""
    start, is_pointer = rows.vocabulary, rows.labels >= rows.vocabulary
    parts: Parts = {}
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
    parts["text"] = (text, compute(name, text, options, reduce, chunk))
    if rows.pointers is not None and rows.pointers.longest:
        parts["pointer"] = (pointing, compute(name, pointing, options, reduce, chunk))
    else:
        parts["pointer"] = (pointing, _nothing(pointing, reduce))
    with torch.no_grad():
        predictions = compute(name, rows, options, True, chunk).predictions
    return parts, predictions


def _nothing(rows: JointRows, reduce: bool) -> Terms:
    """The terms of pointers where there is no image; with a gradient, which is zero, for every tensor."""
    zeros = torch.zeros_like(rows.weights)
    value = zeros.sum() if reduce else zeros
    if rows.pointers is not None:
        value = value + 0.0 * rows.pointers.queries.sum() + 0.0 * rows.pointers.keys.sum()
    return Terms(value, zeros, zeros, torch.zeros_like(rows.labels))


def _reduce(
    values: dict[str, Tensor], counts: dict[str, Tensor], reduction: Reduction, normalizer: Any
) -> Tensor:
    """`values`: weighted sums, or weighted losses of every position, of the parts."""
    if reduction != "mean":
        return torch.stack(list(values.values())).sum(dim=0)
    if normalizer is None:
        by = [counts[part] for part in values]
    else:
        given = torch.as_tensor(normalizer)
        by = [given] if len(values) == 1 else list(given.unbind())
    means = [value / or_one(count.to(value.dtype)) for value, count in zip(values.values(), by, strict=True)]
    return torch.stack(means).sum()


def _check(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    pointer_start: int,
    pointers: Pointers | None,
    gate: Tensor | None,
    weights: Tensor | None,
) -> None:
    positions = len(labels)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels are ids, not {labels.dtype}")
    expected: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("hidden", hidden, (positions, head.shape[-1])),
        ("labels", labels, (positions,)),
        ("gate", gate, (positions, 1)),
        ("weights", weights, (positions,)),
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
    if not 0 < pointer_start <= len(head):
        raise ValueError(
            f"pointer_start is {pointer_start}; it must lie between 1 and the head's {len(head)}"
        )


def _check_options(
    label_smoothing: float,
    z_weight: float,
    separate: bool,
    reduction: str,
    normalizer: Any,
    chunk: int | None,
) -> None:
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1)")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; allowed: mean, sum, none")
    if normalizer is not None and reduction != "mean":
        raise ValueError(f"a normalizer divides a mean; reduction is {reduction!r}")
    shape, wanted = list(torch.as_tensor(0.0 if normalizer is None else normalizer).shape), [2] * separate
    if normalizer is not None and shape != wanted:
        kind = "separate losses" if separate else "a joint loss"
        raise ValueError(f"the normalizer of {kind} has shape {wanted}; this has {shape}")
    if separate and z_weight > 0:
        raise ValueError("separate losses have no z-loss; set z_weight to 0")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; give a positive number of positions, or None")
