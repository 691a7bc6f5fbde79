"""Compares the loss of a run with the reference, on a live batch and in the run's own precision."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from v1lit.pointer.joint_loss.cross_entropy import pointer_cross_entropy
from v1lit.pointer.joint_loss.terms import JointRows, LossOptions, Pointers, Reduction, wide

SLACK = 2.0
"""How many times the error of the reference an implementation may have, beside one rounding of its type."""
ROUNDINGS = 30
"""Roundings of sums that it may have beyond that, in float32, or in float64 with such products."""


class LossMismatchError(RuntimeError):
    """An implementation of the loss is further from the truth than its precision explains."""


def verify_pointer_loss(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    pointer_start: int,
    pointers: Pointers | None = None,
    options: LossOptions | None = None,
    *,
    gate: Tensor | None = None,
    weights: Tensor | None = None,
    limit: int = 256,
) -> dict[str, float]:
    """Compare the loss of every position and the gradients of hidden, head, queries and keys with the truth.

    Arguments as in `pointer_cross_entropy`; of the positions, `limit` spread over all of them are compared.
    The truth is the reference with products in the next wider type, for which the head and its gradient are
    held in that type for a moment. An error is the norm of a difference over the norm of the truth; allowed
    is `SLACK` times the error of the reference in the run's own type, and a rounding. No `.grad` is touched.
    Returns the errors by name. Raises LossMismatchError with the quantity, its error and what was allowed.
    """
    options = options or LossOptions()
    reference = replace(options, implementation="reference")
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    constants = torch.ones_like(labels, dtype=wide(hidden.dtype)) if weights is None else weights
    some = _some(JointRows(hidden, head, labels, constants, pointer_start, pointers, gate), limit)
    dtype = hidden.dtype
    wider = torch.float64 if wide(dtype) == dtype else torch.float32
    with torch.autocast(hidden.device.type, enabled=False):
        truth = _quantities(_to(some, wider), reference)
        naive = _errors(_quantities(_to(some, dtype), reference), truth)
        ours = _errors(_quantities(_to(some, dtype), options), truth)
    for name, error in ours.items():
        floor = torch.finfo(dtype).eps / 2 + ROUNDINGS * torch.finfo(wide(dtype)).eps
        allowed = SLACK * naive[name] + floor
        if not error <= allowed:
            raise LossMismatchError(
                f"the loss implementation {options.implementation!r} is off: relative error {error:.3g} of "
                f"{name}, allowed {allowed:.3g} in {str(dtype).removeprefix('torch.')}; set "
                "pointer.loss_implementation to another, and please report this"
            )
    return ours


def _some(rows: JointRows, limit: int) -> JointRows:
    """Every n-th position, `limit` at most."""
    total = len(rows.labels)
    every = slice(None, None, max(1, -(-total // limit)))
    pointers = rows.pointers
    if pointers is not None:
        bounds = accumulate(pointers.positions, initial=0)
        counts = tuple(sum(low <= n < high for n in range(total)[every]) for low, high in pairwise(bounds))
        pointers = replace(pointers, queries=pointers.queries[every], positions=counts)
    return replace(
        rows,
        hidden=rows.hidden[every],
        labels=rows.labels[every],
        weights=rows.weights[every],
        pointers=pointers,
        gate=None if rows.gate is None else rows.gate[every],
    )


def _to(rows: JointRows, dtype: torch.dtype) -> JointRows:
    """The same tensors as leaves of their own in `dtype`, with gradients."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().to(dtype, copy=True).requires_grad_()

    pointers = rows.pointers
    if pointers is not None:
        pointers = replace(pointers, queries=leaf(pointers.queries), keys=leaf(pointers.keys))
    gate = None if rows.gate is None else rows.gate.detach().to(wide(dtype))
    return replace(rows, hidden=leaf(rows.hidden), head=leaf(rows.head), pointers=pointers, gate=gate)


def _quantities(rows: JointRows, options: LossOptions) -> dict[str, Tensor]:
    """The loss per position, and the gradients of the sum: by both passes of an implementation."""
    leaves = {"hidden": rows.hidden, "head": rows.head}
    if rows.pointers is not None:
        leaves |= {"queries": rows.pointers.queries, "keys": rows.pointers.keys}

    def loss(reduction: Reduction) -> Tensor:
        arguments = (rows.hidden, rows.head, rows.labels, rows.vocabulary, rows.pointers, options)
        return pointer_cross_entropy(
            *arguments, gate=rows.gate, weights=rows.weights, reduction=reduction
        ).loss

    with torch.no_grad():
        losses = loss("none")
    with torch.enable_grad():
        own = torch.autograd.grad(loss("sum"), list(leaves.values()), allow_unused=True)
    gradients = {
        f"the gradient of {name}": torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), own, strict=True)
    }
    return {"the loss": losses.detach(), **gradients}


def _errors(values: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """The norm of each difference over that of the truth; a loss of nothing counts as 0.001 a position."""
    errors = {}
    for name, true in truth.items():
        least = 1e-3 * max(1, len(true)) ** 0.5 if name == "the loss" else torch.finfo(torch.float32).tiny
        size = max(float(true.norm()), least)
        errors[name] = float((values[name].to(true.dtype) - true).norm()) / size
    return errors
