"""What a model found likely at every step of a generation, noted while it generates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from v1lit.pointer.memory import PointerMemory
from v1lit.pointer.output import PointAndCopyOutput


@dataclass(frozen=True)
class Record:
    """What the model found likely where it wrote each token of one answer, before anything steered it."""

    pointers: Tensor
    """`[tokens, choices]`, on the host: logits of the pointers, the lowest float where there is none."""
    totals: Tensor
    """`[tokens]`, on the host: logarithm of the sum over the exponents of all joint logits."""
    logprobs: Tensor | None
    """`[tokens]`, on the host: logarithm of the probability of the token that was written; not of beams."""
    patches: int
    """Image tokens of the row: of its choices the first ones."""

    @cached_property
    def distributions(self) -> Tensor:
        """`[tokens, image_tokens]`: how the pointers' share of the joint softmax is divided; sums to 1."""
        return self.pointers[:, : self.patches].softmax(dim=1)

    @cached_property
    def entropies(self) -> Tensor:
        """`[tokens]`: entropy of `distributions`, in nats; from 0, sure, to log(image tokens), no idea."""
        return torch.special.entr(self.distributions).sum(dim=1)

    def probability(self, step: int, choice: int) -> float:
        """Of the pointer to `choice` at the token `step` of the answer, in the joint softmax."""
        return float((self.pointers[step, choice] - self.totals[step]).exp())


class Recording:
    """A `Watch` of one `generate`: a sum and the pointers' part of the logits of every step are kept.

    That takes `4 x choices` bytes per row and step, and no second pass: what belongs to the tokens that were
    chosen is picked out at the end.

    Args:
        pointer_start: id of the first pointer.
    """

    def __init__(self, pointer_start: int) -> None:
        self.pointer_start = pointer_start
        self.memory: PointerMemory | None = None
        """Of the last step."""
        self.began, self.first, self.ended = time.perf_counter(), 0.0, 0.0
        """When generation was begun, when the first logits were there, when it was over; in seconds."""
        self._pointers: list[Tensor] = []
        self._totals: list[Tensor] = []
        self._chosen: list[Tensor] = []
        self._last: Tensor | None = None

    def reads(self, ids: Tensor) -> None:
        """The last of `ids` `[rows, tokens]` were chosen from the logits of the step before."""
        if self._last is not None:
            self._chosen.append(self._last.gather(1, ids[:, -1:])[:, 0])

    def finds(self, output: PointAndCopyOutput) -> None:
        """Note what a step found."""
        assert output.logits is not None
        logits = output.logits[:, -1]
        if self._last is None:
            if logits.is_cuda:
                torch.cuda.synchronize(logits.device)  # once: else the time of the prefill would be a guess
            self.first = time.perf_counter()
        self._last = logits
        self._totals.append(logits.logsumexp(dim=1))
        self._pointers.append(logits[:, self.pointer_start :].clone())
        self.memory = output.pointer_memory

    def finish(self, ids: Tensor, patches: Sequence[int], beams: Tensor | None = None) -> list[Record]:
        """The records of the rows that were returned.

        Args:
            ids: `[rows, tokens]`: what was generated.
            patches: image tokens of each row.
            beams: `[rows, tokens]`: of beams, the row whose logits each token was chosen from, below 0 behind
                the end.
        """
        self.ended = time.perf_counter()
        tokens = ids.shape[1]
        if not tokens:
            return [Record(torch.empty(0, count), torch.empty(0), torch.empty(0), count) for count in patches]
        totals = torch.stack(self._totals[:tokens]).cpu()
        pointers = torch.stack(self._pointers[:tokens]).cpu()
        if beams is None and len(self._chosen) < tokens:
            self.reads(ids)
        steps = torch.arange(tokens)
        rows = steps.new_tensor(range(len(ids)))[:, None].expand(-1, tokens) if beams is None else beams.cpu()
        chosen = None if beams is not None else torch.stack(self._chosen[:tokens]).cpu() - totals
        return [
            Record(
                pointers[steps[: len(own)], own.clamp(min=0)],
                totals[steps[: len(own)], own.clamp(min=0)],
                None if chosen is None else chosen[:, row],
                patches[row],
            )
            for row, own in enumerate(rows)
        ]
