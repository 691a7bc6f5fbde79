"""At a decoding step, patches that were copied before cannot be pointed at again."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from v1lit.revisit.run_ends import end_ids


class Suppression(LogitsProcessor):
    """Takes pointers of the ids so far, and nothing else, out of what may come next.

    Args:
        pointer_start: id of the first pointer.
        within_run: only pointers of the run that the ids end with, not those of all the sequence.
        image_token_id: of images, where a pointer can be the end of a run, which is never taken out.
    """

    def __init__(self, pointer_start: int, within_run: bool, image_token_id: int | None = None) -> None:
        self.pointer_start, self.within_run = pointer_start, within_run
        self.image_token_id = image_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[rows, classes]`: scores of the ids that may follow `input_ids` `[rows, tokens]`."""
        before = last_run(input_ids, self.pointer_start) if self.within_run else input_ids
        if self.image_token_id is not None:
            before = before.masked_fill(
                before == end_ids(input_ids, self.pointer_start, self.image_token_id), 0
            )
        return scores.masked_fill(pointed_at(before, self.pointer_start, scores), -torch.inf)


def last_run(ids: Tensor, pointer_start: int) -> Tensor:
    """`[rows, tokens]`: the pointers that a row of ids ends with, and 0 in place of all before them."""
    run = (ids >= pointer_start).flip(1).cumprod(1).flip(1).bool()
    return ids.where(run, 0)


def pointed_at(ids: Tensor, pointer_start: int, scores: Tensor) -> Tensor:
    """`[rows, classes]`: which of the classes of `scores` are pointers of `ids` `[rows, tokens]`."""
    there = torch.zeros_like(scores, dtype=torch.bool)
    there.scatter_(1, ids.where(ids >= pointer_start, 0), True)
    there[:, :pointer_start] = False  # what is no pointer was noted at the first class
    return there
