"""What goes into the joint loss and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class Pointers:
    """The pointer side of the softmax; a position may point at the image tokens of its own sequence only.

    The counts are on the host, so that no device is waited for.
    """

    queries: Tensor
    """`[positions, width]`"""
    keys: Tensor
    """`[image_tokens, width]`: of all sequences, one behind another; the last of each may be the end's."""
    positions: tuple[int, ...]
    """How many of the positions belong to sequence 0, 1, ...; they stand in this order."""
    image_tokens: tuple[int, ...]
    """How many of the keys belong to sequence 0, 1, ..."""
    scale: float
    """Factor of `query . key`."""

    @property
    def longest(self) -> int:
        """The number of image tokens of the sequence that has most."""
        return max(self.image_tokens, default=0)


@dataclass
class PointerLoss:
    """The loss and what it is made of."""

    loss: Tensor
    """What to minimise: `[]`, or `[positions]` with reduction "none"."""
    values: dict[str, Tensor]
    """Weighted losses of the positions, each `[positions]`, detached: `joint`, or separately `text` and
    `pointer`, of the cross-entropy; `z` of logsumexp^2, where it has a weight."""
    weights: dict[str, Tensor]
    """The weights of the positions in each of `values`, `[positions]`."""
    predictions: Tensor
    """`[positions]`, detached: the most likely class of the joint softmax."""

    @cached_property
    def sums(self) -> dict[str, Tensor]:
        """Sums of `values` over positions, each `[]`."""
        return {name: value.sum() for name, value in self.values.items()}

    @cached_property
    def counts(self) -> dict[str, Tensor]:
        """Sum of the weights behind each of `sums`, `[]`."""
        return {name: weight.sum() for name, weight in self.weights.items()}

    def means(self, z_weight: float) -> dict[str, Tensor]:
        """The parts as means over the positions, z with its weight; 0 where nothing was counted."""
        parts = {name: value / or_one(self.counts[name]) for name, value in self.sums.items()}
        return {name: z_weight * value if name == "z" else value for name, value in parts.items()}


@dataclass(frozen=True)
class LossOptions:
    """What is computed, and how: the loss of a position is `CE + z_weight * logsumexp^2`.

    Raises ValueError for values out of range and options that exclude each other.
    """

    label_smoothing: float = 0.0
    """Probability spread evenly over the classes that a position has."""
    z_weight: float = 0.0
    z_top_k: int | None = None
    """How many logits the logsumexp of the z-loss is over, the largest; None for all."""
    separate: bool = False
    """Two means added, without a z-loss: text positions over all rows of the head, pointer positions over the
    pointers. It costs a third more than the joint loss, for predictions, which are the joint softmax's."""
    implementation: str = "auto"
    """See `choose_loss`. None but `reference` ever holds `[positions, vocabulary]`."""
    chunk: int | None = None
    """Positions at a time; None for a good number."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 1)")
        if self.separate and self.z_weight > 0:
            raise ValueError("separate losses have no z-loss; set z_weight to 0")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; give a positive number of positions, or None")

    def combine(self, cross_entropy: Tensor, z: Tensor) -> Tensor:
        """The loss as a new tensor. Without a weight z may be infinite, as it is of a row without classes."""
        return cross_entropy + self.z_weight * z if self.z_weight else cross_entropy.clone()


@dataclass(frozen=True)
class JointRows:
    """The rows of one softmax, each over the first `vocabulary` rows of the head, then the pointers."""

    hidden: Tensor
    """`[positions, hidden]`"""
    head: Tensor
    """`[at least vocabulary, hidden]`"""
    labels: Tensor
    """`[positions]`: column of the true class."""
    weights: Tensor
    """`[positions]`, in the type in which losses are computed."""
    vocabulary: int
    pointers: Pointers | None = None
    gate: Tensor | None = None
    """`[positions, 1]`: g; vocabulary logits times 1 - g, pointer logits times g."""


class Terms(NamedTuple):
    """What an implementation makes of `JointRows`."""

    value: Tensor
    """Differentiable: the weighted sum, `[]`, or every position's weighted loss, `[positions]`."""
    cross_entropy: Tensor
    """`[positions]`, unweighted, detached; as are the others."""
    z: Tensor
    """`logsumexp^2`"""
    predictions: Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type for softmax and sums: float32, or float64 where the products are in float64."""
    return torch.promote_types(dtype, torch.float32)


def or_one(count: Tensor) -> Tensor:
    """The count to divide by, 1 for 0, so that nothing over nothing is 0; waits for no device."""
    return torch.where(count == 0, 1.0, count)
