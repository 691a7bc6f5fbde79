"""The joint loss and its gradients, chunk by chunk in one buffer.

A chunk of positions fills `[chunk, vocabulary + pointers]` with its logits, a row function turns them into
the gradient in place, and products with that give the chunk's share of all gradients. So the logits of a
position are computed once, and never those of all positions held.

The gate needs no code in here: (1 - g) (h . w) = ((1 - g) h) . w and g (q . k) = (g q) . k, so autograd
applies it to hidden states and queries outside. Source of the idea: Liger Kernel, arXiv 2410.10989.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from v1lit.pointer.joint_loss.rows import LogitRows, RowFunction, RowTerms
from v1lit.pointer.joint_loss.terms import JointRows, LossOptions, Terms, wide

BUFFER = {"cpu": 5 * 2**25, "cuda": 5 * 2**26}
"""Bytes of logits to hold. Every chunk reads and writes the gradient of the head once: fewer would be slower,
and at some 1,000 rows a GPU's products are no longer bound by that."""
FLOAT16_FACTOR = 2.0**10
"""Weight of the heaviest position while gradients are float16 and wait for the loss scale: with less, those
of confident positions would vanish. They stay below 2^11 times the largest entry of the head, or of keys."""
ROWS_PER_PRODUCT = 2**14
"""Rows of a float32 gradient to which a product in half precision is added at a time."""


class LossInputs(NamedTuple):
    """What a chunk's logits are products of."""

    hidden: Tensor
    head: Tensor
    queries: Tensor | None
    keys: Tensor | None


class Gradients(NamedTuple):
    """The gradients of `LossInputs`; None where none is wanted."""

    hidden: Tensor | None
    head: Tensor | None
    queries: Tensor | None
    keys: Tensor | None


class SequencePart(NamedTuple):
    """The positions of one sequence within a chunk, and the keys of that sequence."""

    positions: slice
    """Among all positions."""
    rows: slice
    """Among those of the chunk."""
    keys: slice
    """Among the image tokens of all sequences."""

    @property
    def pointers(self) -> int:
        return int(self.keys.stop - self.keys.start)


@dataclass(frozen=True)
class SweepPlan:
    """What is known about a pass over all positions before it begins; nothing of it is on a device."""

    vocabulary: int
    positions: tuple[int, ...]
    image_tokens: tuple[int, ...]
    scale: float
    options: LossOptions
    row_function: RowFunction
    dtype: torch.dtype
    """Type of the products."""
    wanted: tuple[bool, ...]
    """Which gradients are computed, in the order of `Gradients`."""

    def width(self, device: torch.device) -> int:
        """Columns of the buffer; a GPU's fast products want rows that begin at multiples of 16 bytes."""
        width = self.vocabulary + max(self.image_tokens, default=0)
        return width if device.type == "cpu" else math.ceil(width / 64) * 64

    def rows_per_chunk(self, device: torch.device) -> int:
        """The positions of a chunk: as given, or what the buffer holds, in even chunks of multiples of 16."""
        total = max(1, sum(self.positions))
        if self.options.chunk is not None:
            return min(self.options.chunk, total)
        row = self.width(device) * self.dtype.itemsize
        most = max(16, BUFFER.get(device.type, BUFFER["cuda"]) // row)
        even = math.ceil(total / math.ceil(total / most))
        return min(math.ceil(even / 16) * 16, total)

    def parts(self, chunk: slice) -> Iterator[SequencePart]:
        """The parts of sequences that the positions of `chunk` are."""
        first = key = 0
        for positions, tokens in zip(self.positions, self.image_tokens, strict=True):
            low, high = max(first, chunk.start), min(first + positions, chunk.stop)
            if low < high:
                yield SequencePart(
                    slice(low, high), slice(low - chunk.start, high - chunk.start), slice(key, key + tokens)
                )
            first, key = first + positions, key + tokens


def chunked_terms(rows: JointRows, options: LossOptions, reduce: bool, row_function: RowFunction) -> Terms:
    """The terms of `rows`, `options.chunk` positions at a time; `row_function` takes the softmax.

    The gradients of a sum are computed at once with it. Those of single losses are not known before the
    backward pass, in which the logits are computed again.
    """
    hidden, queries, pointers = rows.hidden, None, rows.pointers
    if rows.gate is not None:
        hidden = ((1 - rows.gate) * hidden).to(hidden.dtype)
    if pointers is not None:
        queries = pointers.queries
        if rows.gate is not None:
            queries = (rows.gate * queries).to(queries.dtype)
    inputs = LossInputs(hidden, rows.head, queries, None if pointers is None else pointers.keys)
    plan = SweepPlan(
        vocabulary=rows.vocabulary,
        positions=(len(hidden),) if pointers is None else pointers.positions,
        image_tokens=(0,) if pointers is None else pointers.image_tokens,
        scale=1.0 if pointers is None else pointers.scale,
        options=options,
        row_function=row_function,
        dtype=hidden.dtype,
        wanted=tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in inputs),
    )
    if reduce:
        return Terms(*_Sum.apply(plan, rows.labels, rows.weights, *inputs))
    losses, *others = _EveryPosition.apply(plan, rows.labels, *inputs)
    return Terms(rows.weights * losses, *others)


class _Sum(torch.autograd.Function):
    """The weighted sum of the losses. Its gradient is ready before it is asked for, up to a factor."""

    @staticmethod
    def forward(ctx: Any, plan: SweepPlan, labels: Tensor, weights: Tensor, *inputs: Any) -> Any:
        ctx.factor = 1.0
        if plan.dtype == torch.float16:
            ctx.factor = FLOAT16_FACTOR / F.pad(weights, (0, 1), value=1.0).max()
        heavy = weights * ctx.factor if any(plan.wanted) else None
        terms, ctx.gradients = sweep(plan, labels, heavy, LossInputs(*inputs))
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
        ctx.mark_non_differentiable(*terms)
        return (weights * plan.options.combine(*terms[:2])).sum(), *terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> Any:
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradients of this loss were handed out and are gone; to go backward through it twice, "
                "take reduction='none' and sum"
            )
        gradients, ctx.gradients = ctx.gradients, None
        # Of shape [1, 1], the factor is no scalar, which would be rounded to the type of the gradient first.
        factor = upstream.reshape(1, 1) / ctx.factor
        scaled = [None if g is None else g.mul_(factor) for g in gradients]
        return None, None, None, *_cast(scaled, ctx.dtypes)


class _EveryPosition(torch.autograd.Function):
    """The loss of every position."""

    @staticmethod
    def forward(ctx: Any, plan: SweepPlan, labels: Tensor, *inputs: Any) -> Any:
        ctx.plan = plan
        ctx.save_for_backward(labels, *inputs)
        terms = sweep(replace(plan, wanted=(False,) * 4), labels, None, LossInputs(*inputs))[0]
        ctx.mark_non_differentiable(*terms)
        return plan.options.combine(*terms[:2]), *terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> Any:
        labels, *inputs = ctx.saved_tensors
        gradients = sweep(ctx.plan, labels, upstream, LossInputs(*inputs))[1]
        return None, None, *_cast(gradients, [None if t is None else t.dtype for t in inputs])


def _cast(tensors: Any, dtypes: Any) -> list[Tensor | None]:
    return [None if t is None else t.to(dtype) for t, dtype in zip(tensors, dtypes, strict=True)]


# ---------------------------------------------------------------------- one pass over all positions


def sweep(
    plan: SweepPlan, labels: Tensor, weights: Tensor | None, inputs: LossInputs
) -> tuple[RowTerms, Gradients]:
    """Terms of every position and, with weights `[positions]`, gradients of the weighted sum of losses."""
    gradients = _zeros(plan, inputs)
    inputs = LossInputs(*(None if t is None else t.detach().to(plan.dtype) for t in inputs))  # type: ignore[arg-type]
    terms = RowTerms.empty(len(labels), inputs.hidden)
    chunk = plan.rows_per_chunk(labels.device)
    buffer = inputs.hidden.new_empty(chunk, plan.width(labels.device))
    classes = _classes(plan, labels)
    for start in range(0, len(labels), chunk):
        rows = slice(start, min(start + chunk, len(labels)))
        logits = buffer[: rows.stop - start]
        _write_logits(logits, inputs, rows, plan)
        own = None if weights is None else weights[rows]
        of_rows = LogitRows(logits, labels[rows], classes[rows], own, plan.vocabulary, plan.options)
        for of_all, of_chunk in zip(terms, plan.row_function(of_rows), strict=True):
            of_all[rows] = of_chunk
        if weights is not None:
            _add_gradients(gradients, logits, inputs, rows, plan)
    return terms, gradients


def _zeros(plan: SweepPlan, inputs: LossInputs) -> Gradients:
    """Room for the gradients: float32 where many chunks add to one, else of the products' type."""
    has_text = plan.vocabulary > 0
    dtypes = (plan.dtype, wide(plan.dtype), plan.dtype, wide(plan.dtype))
    wanted = (plan.wanted[0] and has_text, plan.wanted[1] and has_text, *plan.wanted[2:])
    return Gradients(
        *(
            torch.zeros_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)
            if want and tensor is not None
            else None
            for tensor, dtype, want in zip(inputs, dtypes, wanted, strict=True)
        )
    )


def _classes(plan: SweepPlan, labels: Tensor) -> Tensor:
    """`[positions]`: how many classes every position has; written part by part, which waits for no device.

    At least one: a position without any, whose weight is 0, has the first of the lowest floats.
    """
    classes = torch.empty_like(labels, dtype=torch.int32)
    for part in plan.parts(slice(0, len(labels))):
        classes[part.positions] = max(1, plan.vocabulary + part.pointers)
    return classes


def _write_logits(logits: Tensor, inputs: LossInputs, chunk: slice, plan: SweepPlan) -> None:
    """Write `[vocabulary ; pointers of the own sequence ; lowest float]` into every row of `logits`."""
    hidden, head, queries, keys = inputs
    vocabulary = plan.vocabulary
    if vocabulary:
        torch.mm(hidden[chunk], head[:vocabulary].T, out=logits[:, :vocabulary])
    for part in plan.parts(chunk):
        stop = vocabulary + part.pointers
        if part.pointers:
            assert queries is not None
            assert keys is not None
            own = logits[part.rows, vocabulary:stop]
            _product(own, queries[part.positions], keys[part.keys].T, plan.scale)
        logits[part.rows, stop:] = torch.finfo(logits.dtype).min


def _add_gradients(
    gradients: Gradients, logits: Tensor, inputs: LossInputs, chunk: slice, plan: SweepPlan
) -> None:
    """Add a chunk's share, whose `logits` hold their own gradient by now."""
    hidden, head, queries, keys = inputs
    vocabulary = plan.vocabulary
    text = logits[:, :vocabulary]
    if gradients.hidden is not None:
        torch.mm(text, head[:vocabulary], out=gradients.hidden[chunk])
    if gradients.head is not None:
        _add_product(gradients.head[:vocabulary], text.T, hidden[chunk])
    for part in plan.parts(chunk):
        if not part.pointers:
            continue
        own = logits[part.rows, vocabulary : vocabulary + part.pointers]
        if gradients.queries is not None and keys is not None:
            _product(gradients.queries[part.positions], own, keys[part.keys], plan.scale)
        if gradients.keys is not None and queries is not None:
            _add_product(gradients.keys[part.keys], own.T, queries[part.positions], plan.scale)


def _product(out: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """`out = scale * left @ right`, rounded once."""
    torch.addmm(out, left, right, beta=0, alpha=scale, out=out)


def _add_product(total: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
    """`total += scale * left @ right`; a float32 total takes products of half precision too."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=scale)
    elif _adds_in_place(total.device, left.dtype):
        torch.addmm(total, left, right, alpha=scale, out_dtype=total.dtype, out=total)
    else:  # The product is a tensor of its own: some rows of it at a time.
        for rows, left_rows in zip(total.split(ROWS_PER_PRODUCT), left.split(ROWS_PER_PRODUCT), strict=True):
            rows.add_(_half_product(left_rows, right, total.dtype), alpha=scale)


def _half_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """`left @ right` of half precision, in `dtype` on a GPU."""
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=dtype)
    if left.dtype == torch.float16:  # A sum over many positions may exceed its range.
        left, right = left.to(dtype), right.to(dtype)
    return left @ right


@cache
def _adds_in_place(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch adds a product in half precision to a float32 total: new ones do on a GPU."""
    total = torch.ones(8, 8, device=device)
    half = torch.ones(8, 8, device=device, dtype=dtype)
    try:
        torch.addmm(total, half, half, alpha=0.5, out_dtype=torch.float32, out=total)
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    return bool((total == 1 + 0.5 * 8).all())
