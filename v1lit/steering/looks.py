"""How often, and how long, a model may look."""

from __future__ import annotations

from torch import Tensor

from v1lit.steering.rule import Pointed, PointerRule


class MaxLooks(PointerRule):
    """A budget of looks: after that many runs of pointers no further one begins.

    Args:
        looks: runs of pointers of a row at most; 0 for none.
        pointer_start: as in `PointerRule`.
        prompt_length: as in `PointerRule`.
        image_token_id: as in `PointerRule`.
    """

    def __init__(
        self, looks: int, pointer_start: int, prompt_length: int, image_token_id: int | None = None
    ) -> None:
        super().__init__(pointer_start, prompt_length, image_token_id)
        self.looks = looks

    def gone(self, pointed: Pointed, pointers: int) -> Tensor:
        return ((pointed.looks >= self.looks) & ~pointed.run.any(1))[:, None]


class MaxPointers(PointerRule):
    """A limit on the pointers of an object: that many of a run at most.

    Args:
        pointers: of a run at most, 1 or more.
        pointer_start: as in `PointerRule`.
        prompt_length: as in `PointerRule`.
        image_token_id: as in `PointerRule`.
    """

    def __init__(
        self, pointers: int, pointer_start: int, prompt_length: int, image_token_id: int | None = None
    ) -> None:
        super().__init__(pointer_start, prompt_length, image_token_id)
        self.pointers = pointers

    def gone(self, pointed: Pointed, pointers: int) -> Tensor:
        return (pointed.run.sum(1) >= self.pointers)[:, None]
