"""Labels: what every token of a sequence is to learn; ids from `pointer_start` on are pointers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100
"""The label of a token from which nothing is learned, as in `torch.nn.functional.cross_entropy`."""

END = -1
"""In place of the pointer that ends a run, whose id differs from sequence to sequence, for metrics."""


def first_pointers(labels: Tensor, pointer_start: int) -> Tensor:
    """Whether a run of pointers begins: bool `[..., tokens]`, of ids or labels `[..., tokens]`."""
    is_pointer = labels >= pointer_start
    first = is_pointer.clone()
    first[..., 1:] &= ~is_pointer[..., :-1]
    return first
