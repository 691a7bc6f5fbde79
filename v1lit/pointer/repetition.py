"""A penalty on repeated words that leaves pointers and images alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

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


def as_of_words(
    options: Mapping[str, Any], settings: GenerationConfig, pointer_start: int, image_token_id: int
) -> dict[str, Any]:
    """Options of `generate` whose repetition penalty, or that of its settings, is one of words.

    Spared are images, padding and what ends an answer. Raises what `WordRepetition` raises.
    """

    def chosen(name: str) -> Any:
        return options.get(name, getattr(settings, name))

    penalty, ends = chosen("repetition_penalty"), chosen("eos_token_id")
    if penalty is None or penalty == 1:
        return dict(options)
    ends = ends if isinstance(ends, list | tuple) else [ends]
    spared = [token for token in (image_token_id, chosen("pad_token_id"), *ends) if token is not None]
    own = WordRepetition(penalty, pointer_start, spared)
    given = options.get("logits_processor") or []
    return {**options, "logits_processor": [own, *given], "repetition_penalty": 1.0}
