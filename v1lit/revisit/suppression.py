"""At a decoding step, patches that were copied before cannot be pointed at again."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class Suppression(LogitsProcessor):
    """Takes pointers of the ids so far, and nothing else, out of what may come next.

    Args:
        pointer_start: id of the first pointer.
        within_run: only pointers of the run that the ids end with, not those of all the sequence.
    """

    def __init__(self, pointer_start: int, within_run: bool) -> None:
        self.pointer_start, self.within_run = pointer_start, within_run

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[rows, classes]`: scores of the ids that may follow `input_ids` `[rows, tokens]`."""
        before = last_run(input_ids, self.pointer_start) if self.within_run else input_ids
        taken = torch.zeros_like(scores, dtype=torch.bool)
        # What is no pointer takes the first token of the text away, which is put back.
        taken.scatter_(1, before.where(before >= self.pointer_start, 0), True)
        taken[:, : self.pointer_start] = False
        return scores.masked_fill(taken, -torch.inf)


def last_run(ids: Tensor, pointer_start: int) -> Tensor:
    """`[rows, tokens]`: the pointers that a row of ids ends with, and 0 in place of all before them."""
    run = (ids >= pointer_start).flip(1).cumprod(1).flip(1).bool()
    return ids.where(run, 0)
