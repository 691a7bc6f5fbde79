"""What rules on pointers share: which a row has generated so far, and how others are taken out."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from v1lit.revisit.run_ends import end_ids


@dataclass(frozen=True)
class Pointed:
    """The generated part of every row."""

    patches: Tensor
    """`[rows, tokens]`: the image token that each points at, -1 where it is text or the end of a run."""

    @property
    def is_patch(self) -> Tensor:
        """`[rows, tokens]`: whether a token points at an image token."""
        return self.patches >= 0

    @property
    def run(self) -> Tensor:
        """`[rows, tokens]`: which tokens are the run of pointers that a row ends with."""
        return self.is_patch.flip(1).long().cumprod(1).flip(1).bool()

    @property
    def looks(self) -> Tensor:
        """`[rows]`: how many runs of pointers a row has begun."""
        is_patch = self.is_patch
        before = torch.nn.functional.pad(is_patch, (1, 0))[:, :-1]
        return (is_patch & ~before).sum(1)


class PointerRule(LogitsProcessor):
    """Takes pointers, and nothing else, out of what may come next.

    A rule looks at the ids of a row alone, so that samples and beams each have their own, and it can be used
    with any `generate` whose logits are joint: `[rows, V + pointers]`.

    Args:
        pointer_start: id of the first pointer.
        prompt_length: tokens of the prompts, padding included; their pointers are no looks of the model's.
        image_token_id: of images, where a pointer can be the end of a run, which no rule takes out.
    """

    def __init__(self, pointer_start: int, prompt_length: int, image_token_id: int | None = None) -> None:
        self.pointer_start, self.prompt_length = pointer_start, prompt_length
        self.image_token_id = image_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[rows, classes]`: scores of the ids that may follow `input_ids` `[rows, tokens]`."""
        new, start = input_ids[:, self.prompt_length :], self.pointer_start
        pointers = scores.shape[1] - start
        end = None
        if self.image_token_id is not None:
            end = end_ids(input_ids, start, self.image_token_id)
            new = new.masked_fill(new == end, 0)
        gone = self.gone(Pointed((new - start).clamp(min=-1)), pointers)
        if end is not None:
            gone = gone & (torch.arange(pointers, device=scores.device) != end - start)
        text = gone.new_zeros(len(gone), start)
        return scores.masked_fill(torch.cat([text, gone.expand(-1, pointers)], dim=1), -torch.inf)

    @abstractmethod
    def gone(self, pointed: Pointed, pointers: int) -> Tensor:
        """`[rows, pointers]` or `[rows, 1]`: which image tokens cannot be pointed at next."""
