"""A penalty on repeated words that leaves pointers and images alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import LogitsProcessor

from v1lit.errors import OptionError


class WordRepetition(LogitsProcessor):
    """Divides the logits of words that a row has already, where they are positive, and multiplies others.

    To look at a patch twice is no repetition, and the tokens of an image are no words: pointers stay as they
    are, and so do the ids of `spared`. Raises OptionError for a penalty that is not positive. Source:
    arXiv 1909.05858, section 4.1.

    Args:
        penalty: above 1 for less repetition.
        pointer_start: id of the first pointer.
        spared: ids that are never penalised: the placeholder of images, padding, the end of an answer.
    """

    def __init__(self, penalty: float, pointer_start: int, spared: Iterable[int] = ()) -> None:
        if not penalty > 0:
            raise OptionError("repetition_penalty", penalty, "it must be more than 0; 1 changes nothing")
        self.penalty, self.pointer_start = float(penalty), pointer_start
        self.spared = sorted(set(spared))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[rows, classes]`: scores of the ids that may follow `input_ids` `[rows, tokens]`."""
        seen = torch.zeros_like(scores, dtype=torch.bool)
        seen.scatter_(1, input_ids.where(input_ids < self.pointer_start, 0), True)
        # Of the first class it is told by itself: it stood for the pointers, too.
        seen[:, 0] = (input_ids == 0).any(1)
        seen[:, self.spared] = False
        penalised = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(seen, penalised, scores)
