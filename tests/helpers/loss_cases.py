"""Rows for the tests of the joint loss: a grid of shapes, and errors against float64."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from v1lit.pointer.joint_loss import LossOptions, PointerLoss, Pointers, Reduction, pointer_cross_entropy

HIDDEN, WIDTH = 16, 8
SLACK, ROUNDINGS = 2.0, 30
"""Error allowed: so many times that of the reference in the same type (which few numbers make small by luck:
one rounding in that type is always granted), and so many roundings of the sums."""


NO_TRITON = find_spec("triton") is None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not NO_TRITON
"""Whether Triton's kernels run without a GPU, as in test_triton_interpreted.py."""
if INTERPRETED:
    from v1lit.pointer.joint_loss import triton_rows

    triton_rows.BLOCK = 64  # several to a row
TRITON_MARKS = (
    *([] if INTERPRETED else [pytest.mark.gpu]),
    pytest.mark.skipif(NO_TRITON, reason="triton is not installed"),
)
FAST = ["chunked", pytest.param("triton", marks=TRITON_MARKS)]
TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")


@dataclass(frozen=True)
class Shape:
    """Supervised positions and image tokens of every sequence, and the share of targets that are pointers."""

    positions: tuple[int, ...] = (9, 7)
    image_tokens: tuple[int, ...] = (6, 4)
    share: float = 0.4
    start: int = 64
    vocabulary: int = 64
    pointers: bool = True


SHAPES = {
    "two sequences": Shape(),
    "no pointer targets": Shape(share=0.0),
    "only pointer targets": Shape(share=1.0),
    "no image": Shape(image_tokens=(0, 0)),
    "no pointers at all": Shape(pointers=False),
    "one position": Shape(positions=(1,), image_tokens=(3,)),
    "one pointer": Shape(positions=(1,), image_tokens=(1,), share=1.0),
    "odd vocabulary, unused rows": Shape(start=97, vocabulary=101),
    "several images": Shape(positions=(30,), image_tokens=(150,)),
    "packed, some without": Shape(positions=(10, 0, 23, 1), image_tokens=(7, 3, 0, 12), start=61),
    "nothing supervised": Shape(positions=(0, 0), image_tokens=(4, 0)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "z": {"z_weight": 1e-2},
    "z of the largest": {"z_weight": 1e-2, "z_top_k": 8},
    "smoothed": {"label_smoothing": 0.1},
    "smoothed z": {"label_smoothing": 0.1, "z_weight": 1e-2},
    "separate": {"separate": True},
    "separate smoothed": {"separate": True, "label_smoothing": 0.1},
}
FAST_CASES = [
    pytest.param(
        implementation,
        options,
        dtype,
        id=f"{implementation}-{name}-{dtype}",
        marks=TRITON_MARKS if implementation == "triton" else (),
    )
    for implementation in ("chunked", "triton")
    for name, options in OPTIONS.items()
    for dtype in TYPES
    if implementation != "triton" or (dtype != torch.float64 and "z_top_k" not in options)
]
"""Implementation, options and type, where they go together."""


@dataclass(frozen=True)
class Rows:
    """Arguments of `pointer_cross_entropy`; tensors are leaves with gradients."""

    hidden: Tensor
    head: Tensor
    labels: Tensor
    start: int
    pointers: Pointers | None
    gate: Tensor | None
    weights: Tensor | None

    def leaves(self) -> dict[str, Tensor]:
        found = {"hidden": self.hidden, "head": self.head, "gate": self.gate}
        if self.pointers is not None:
            found |= {"queries": self.pointers.queries, "keys": self.pointers.keys}
        return {name: leaf for name, leaf in found.items() if leaf is not None}

    def to(self, dtype: torch.dtype) -> Rows:
        """Copies, with the gate in at least float32, as the model has it."""

        def leaf(tensor: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return tensor.detach().to(dtype, copy=True).requires_grad_()

        pointers = self.pointers
        if pointers is not None:
            pointers = replace(pointers, queries=leaf(pointers.queries), keys=leaf(pointers.keys))
        gate = None if self.gate is None else leaf(self.gate, torch.promote_types(dtype, torch.float32))
        return replace(self, hidden=leaf(self.hidden), head=leaf(self.head), gate=gate, pointers=pointers)

    def loss(self, *, reduction: Reduction = "mean", normalizer: Any = None, **options: Any) -> PointerLoss:
        return pointer_cross_entropy(
            self.hidden, self.head, self.labels, self.start, self.pointers, LossOptions(**options),
            gate=self.gate, weights=self.weights, reduction=reduction, normalizer=normalizer,
        )  # fmt: skip

    def cut(self, sequences: slice) -> Rows:
        """Some of the sequences; leaves are views, whose gradients reach the whole."""
        assert self.pointers is not None
        first, last = sequences.start, sequences.stop
        counts, tokens = self.pointers.positions, self.pointers.image_tokens
        rows = slice(sum(counts[:first]), sum(counts[:last]))
        keys = self.pointers.keys[sum(tokens[:first]) : sum(tokens[:last])]
        queries = self.pointers.queries[rows]
        return replace(
            self,
            hidden=self.hidden[rows],
            labels=self.labels[rows],
            pointers=Pointers(queries, keys, counts[sequences], tokens[sequences], self.pointers.scale),
            gate=None if self.gate is None else self.gate[rows],
            weights=None if self.weights is None else self.weights[rows],
        )


def make_rows(
    shape: Shape,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    gate: bool = False,
    weights: bool = True,
) -> Rows:
    """Random rows. The weights are uneven and one is 0; a gate is near 1/2."""
    random = torch.Generator().manual_seed(seed)
    count = sum(shape.positions)
    available = torch.tensor(shape.image_tokens).repeat_interleave(torch.tensor(shape.positions))
    pointing = (torch.rand(count, generator=random) < shape.share) & (available > 0) & shape.pointers
    chosen = (torch.rand(count, generator=random) * available).long()
    text = torch.randint(0, shape.start, (count,), generator=random)
    heavy = torch.rand(count, generator=random) + 0.5
    heavy[1:2] = 0.0

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random, dtype=torch.float64).to(dtype).to(DEVICE)

    pointers = Pointers(
        normal(count, WIDTH), normal(sum(shape.image_tokens), WIDTH), shape.positions, shape.image_tokens, 0.3
    )
    rows = Rows(
        hidden=normal(count, HIDDEN),
        head=normal(shape.vocabulary, HIDDEN) * 0.5,
        labels=torch.where(pointing, shape.start + chosen, text).to(DEVICE),
        start=shape.start,
        pointers=pointers if shape.pointers else None,
        gate=torch.rand(count, 1, generator=random).mul(0.4).add(0.3).to(DEVICE) if gate else None,
        weights=heavy.to(DEVICE) if weights else None,
    )
    return rows.to(dtype)


def results(rows: Rows, upstream: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
    """Loss and gradients by name; `upstream` weighs the losses of reduction "none"."""
    return with_gradients(rows, rows.loss(**options).loss, upstream)


def with_gradients(rows: Rows, loss: Tensor, upstream: Tensor | None = None) -> dict[str, Tensor]:
    """The loss, and its gradients by name."""
    leaves = rows.leaves()
    found = torch.autograd.grad(
        loss if upstream is None else (loss * upstream).sum(), list(leaves.values()), allow_unused=True
    )
    gradients = {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }
    return {"loss": loss.detach(), **gradients}


def errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Norm of the difference over the norm of the truth, or over 0.01 where the truth is (almost) 0."""
    assert found.keys() == truth.keys()
    return {
        name: float((found[name].double() - true.double()).norm() / true.double().norm().clamp(min=0.01))
        for name, true in truth.items()
    }


def assert_as_good_as_reference(
    ours: Callable[[Rows], dict[str, Tensor]], reference: Callable[[Rows], dict[str, Tensor]], rows: Rows
) -> None:
    """Ours, in the type of `rows`, has at most a few times the error that the reference has in that type."""
    assert_small_errors(ours(rows), reference(rows), reference(rows.to(torch.float64)), rows.hidden.dtype)


def assert_small_errors(
    ours: dict[str, Tensor], naive: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """The same for results that are at hand."""
    usual = errors(naive, truth)
    for name, error in errors(ours, truth).items():
        floor = ROUNDINGS * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        # Triton's interpreter cuts off what a GPU rounds.
        floor += torch.finfo(dtype).eps * (1.0 if INTERPRETED else 0.5)
        assert error <= SLACK * usual[name] + floor, (name, error, usual[name])
