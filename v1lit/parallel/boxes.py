"""Which part of a tensor a rank holds, and how parts overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


@dataclass(frozen=True)
class Box:
    """A part of a tensor, in elements along each of its axes."""

    offsets: tuple[int, ...]
    """Where it begins."""
    sizes: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """All of a tensor."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def elements(self) -> int:
        return math.prod(self.sizes)

    def within(self, outer: Box) -> tuple[slice, ...]:
        """The slices of `outer` that are this box, which lies inside."""
        begins = [own - outside for own, outside in zip(self.offsets, outer.offsets, strict=True)]
        return tuple(slice(begin, begin + size) for begin, size in zip(begins, self.sizes, strict=True))

    def overlap(self, other: Box) -> Box | None:
        """What both have, None where that is nothing."""
        begins = tuple(map(max, self.offsets, other.offsets))
        ends = map(min, _ends(self), _ends(other))
        sizes = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
        return Box(begins, sizes) if all(size > 0 for size in sizes) else None

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether it lies inside a tensor of this shape."""
        ends = _ends(self)
        return len(ends) == len(shape) and all(end <= size for end, size in zip(ends, shape, strict=True))


@dataclass(frozen=True)
class OwnPart:
    """What this rank holds of a tensor."""

    data: Tensor
    box: Box
    shape: tuple[int, ...]
    """Of the whole tensor."""
    first: bool
    """Whether it is this rank, of all that hold the same part, which writes it."""


def own_part(name: str, tensor: Tensor, rank: int) -> OwnPart:
    """This rank's part of a tensor; a plain one is whole on every rank, and written by rank 0.

    Raises ValueError for sums that are still to be made, and where torch holds something else than it says.
    """
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor):
        return OwnPart(tensor, Box.whole(shape), shape, rank == 0)
    mesh, placements = tensor.device_mesh, tensor.placements
    if any(placement.is_partial() for placement in placements):
        raise ValueError(f"{name} is a sum over ranks that has not been made yet, {placements}")
    data = tensor.to_local()
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    if tuple(data.shape) != tuple(sizes):
        raise ValueError(f"rank {rank} holds {list(data.shape)} of {name}, not {list(sizes)} by {placements}")
    place = mesh.get_coordinate()
    assert place is not None
    copies = [at for at, placement in zip(place, placements, strict=True) if placement.is_replicate()]
    # A mesh may be one of several beside each other, which all hold the tensor; one of them has rank 0.
    first = not any(copies) and bool((mesh.mesh == 0).any())
    return OwnPart(data, Box(tuple(offsets), tuple(sizes)), shape, first)


def tile(boxes: Iterable[Box], area: Box) -> bool:
    """Whether boxes, all inside an area, fill it without an overlap."""
    filled = [box for box in boxes if box.elements]
    if sum(box.elements for box in filled) != area.elements:
        return False
    begins = np.array([box.offsets for box in filled], np.int64).reshape(len(filled), len(area.sizes))
    ends = begins + np.array([box.sizes for box in filled], np.int64).reshape(begins.shape)
    apart = np.zeros((len(filled), len(filled)), bool)
    for begin, end in zip(begins.T, ends.T, strict=True):
        apart |= (begin[:, None] >= end[None, :]) | (end[:, None] <= begin[None, :])
    np.fill_diagonal(apart, val=True)
    return bool(apart.all())


def _ends(box: Box) -> tuple[int, ...]:
    return tuple(begin + size for begin, size in zip(box.offsets, box.sizes, strict=True))
