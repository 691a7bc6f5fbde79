"""How one request chooses its next token: greedily or by sampling, behind its own rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from v1lit.errors import check_fields, check_least


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; the defaults take the most likely one."""

    temperature: float = 0.0
    """Of the softmax; 0 takes the most likely token."""
    top_p: float = 1.0
    """Only the most likely tokens that together have this probability."""
    top_k: int | None = None
    """Only that many of the most likely tokens."""
    seed: int | None = None
    """Of this request's own random numbers, so that others beside it change nothing."""

    GROUP: ClassVar[str] = "sampling"

    def at(self, number: int) -> Sampling:
        """The same for the `number`-th answer to one request, which draws other tokens."""
        return self if self.seed is None or not number else replace(self, seed=self.seed + number)

    def __post_init__(self) -> None:
        check_fields(self, ["temperature"], lambda given: 0 <= given <= 100, "it must lie in [0, 100]")
        check_fields(self, ["top_p"], lambda given: 0 < given <= 1, "it must lie in (0, 1]")
        check_least(self, 1, "top_k")


class Choice:
    """Chooses the tokens of one request.

    Args:
        sampling: how.
        rules: what changes its logits before that, in order.
    """

    def __init__(self, sampling: Sampling, rules: Sequence[LogitsProcessor] = ()) -> None:
        self.rules = [*rules]
        self.draws = sampling.temperature > 0
        self.generator: torch.Generator | None = None
        self.seed = sampling.seed
        if self.draws:
            self.rules.append(TemperatureLogitsWarper(sampling.temperature))
            self.rules += [] if sampling.top_k is None else [TopKLogitsWarper(sampling.top_k)]
            self.rules += [] if sampling.top_p == 1 else [TopPLogitsWarper(sampling.top_p)]

    def __call__(self, ids: Tensor, logits: Tensor) -> int:
        """The next id of `ids` `[1, tokens]`, by its joint logits `[1, V + own choices]`."""
        for rule in self.rules:
            logits = rule(ids, logits)
        if not self.draws:
            return int(logits.argmax())
        return int(torch.multinomial(logits.softmax(1), 1, generator=self._generator(logits.device)))

    def _generator(self, device: torch.device) -> torch.Generator:
        if self.generator is None:
            self.generator = torch.Generator(device)
            if self.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(self.seed)
        return self.generator
