"""How a run of pointers ends where the pointer head has a choice for that: its place among the ids."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


def end_ids(ids: Tensor, pointer_start: int, image_token_id: int) -> Tensor:
    """`[rows, 1]`: the id that ends a run, the one behind the pointers to all image tokens of a row.

    Of `ids` `[rows, tokens]`, with the images.
    """
    return pointer_start + (ids == image_token_id).sum(1, keepdim=True)


class RunEnds(LogitsProcessor):
    """Keeps generation to what training shows: `pointers end text`.

    Behind a pointer to a patch only patches and the end can follow, behind the end only text, and a run
    cannot end before it has begun. That depends on the ids of a row alone, so samples and beams each have
    their own.

    Args:
        pointer_start: id of the first pointer.
        image_token_id: id of the tokens of images.
    """

    def __init__(self, pointer_start: int, image_token_id: int) -> None:
        self.pointer_start, self.image_token_id = pointer_start, image_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[rows, classes]`: scores of the ids that may follow `input_ids` `[rows, tokens]`."""
        end, last = end_ids(input_ids, self.pointer_start, self.image_token_id), input_ids[:, -1:]
        ended = last == end
        within = (last >= self.pointer_start) & ~ended
        classes = torch.arange(scores.shape[1], device=scores.device)[None]
        is_pointer = classes >= self.pointer_start
        gone = torch.where(within, ~is_pointer, torch.where(ended, is_pointer, classes == end))
        return scores.masked_fill(gone, -torch.inf)
