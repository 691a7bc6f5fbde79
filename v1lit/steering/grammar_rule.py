"""The format of traces, held token by token, and looks that have to happen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import LogitsProcessor

from v1lit.grounding.markup import CALL
from v1lit.steering.grammar import START, Needs, State, after, after_pointer, may_end
from v1lit.steering.vocabulary import Vocabulary

LONGEST_QUERY = 200
"""Characters of a query, after which it has to end."""
MASKS = 256
"""Masks that are kept, of `V` bytes each."""
_TO_ESCAPE = re.compile(rf'"|{re.escape(CALL)}|\\(?=[\\"]|{re.escape(CALL)}|\Z)')


class Progress(NamedTuple):
    """How far a row has come."""

    state: State | None = START
    """None where it left the format, as a beam without a chance does, and behind the stop token."""
    calls: int = 0
    """Calls whose query has begun."""
    query: int = 0
    """Characters of the query that is being written."""
    since: int = 0
    """Tokens since the last pointer, or the beginning."""
    looked: bool = False
    """Whether the last call has a pointer."""
    closed: bool = True
    """Whether the last call has ended."""


class GrammarRule(LogitsProcessor):
    """Calls and regions are well formed, so that nothing of a trace is unreadable.

    It comes behind the other rules, since it sees by the scores whether a pointer is possible: a region that
    could hold none is not opened. What breaks off at `max_new_tokens` is whole up to there.

    Args:
        vocabulary: what each token writes.
        prompt_length: tokens of the prompts, padding included.
        look_every: tokens of text at most between two looks: then a call begins, whose query of at most 200
            characters the model writes, and an object of it is pointed at. None for no such limit.
        queries: what the first calls look for, at once and in this order, each with an object pointed at.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt_length: int,
        look_every: int | None = None,
        queries: Sequence[str] = (),
    ) -> None:
        self.vocabulary, self.prompt_length, self.look_every = vocabulary, prompt_length, look_every
        self.queries = [_TO_ESCAPE.sub(r"\\\g<0>", query) + '"' for query in queries]
        self._known: dict[bytes, Progress] = {}
        self._mask = lru_cache(MASKS)(self._new_mask)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[rows, classes]`: scores of the ids that may follow `input_ids` `[rows, tokens]`."""
        start, new = len(self.vocabulary), input_ids[:, self.prompt_length :].cpu().numpy()
        pointers = scores[:, start:]
        can_point = (pointers > torch.finfo(scores.dtype).min).any(1).tolist()
        rows = [self._progress(row) for row in new]
        self._known = {row.tobytes(): progress for row, progress in zip(new, rows, strict=True)}
        masks = [self._allowed(*row) for row in zip(rows, can_point, strict=True)]
        text = torch.from_numpy(np.stack([mask for mask, _ in masks])).to(scores.device)
        point = torch.tensor([[points] for _, points in masks], device=scores.device)
        allowed = torch.cat([text, point.expand_as(pointers)], dim=1)
        return scores.masked_fill(~allowed, -torch.inf)

    def _progress(self, row: npt.NDArray[np.int64]) -> Progress:
        """Of a row of new tokens, from that of all but its last where that is known."""
        before = self._known.get(row[:-1].tobytes()) if len(row) else None
        tokens, progress = (row, Progress()) if before is None else (row[-1:], before)
        for token in tokens.tolist():
            progress = self._advance(progress, token)
        return progress

    def _advance(self, progress: Progress, token: int) -> Progress:
        state, calls, query, since, looked, closed = progress
        if state is None or token == self.vocabulary.stop:
            return progress._replace(state=None)
        if token >= len(self.vocabulary):
            return Progress(after_pointer(state), calls, query, 0, True, closed)
        for char in self.vocabulary.texts[token]:
            following = after(state, char)
            if following is None:
                return progress._replace(state=None)
            if following.kind == "query":
                query += 1
                if state.kind != "query":
                    calls, query, looked, closed = calls + 1, 0, False, False
            state, closed = following, closed or may_end(following)
        return Progress(state, calls, query, since + 1, looked, closed)

    def _allowed(self, progress: Progress, can_point: bool) -> tuple[npt.NDArray[np.bool_], bool]:
        """`[V]`: which text may follow, and whether a pointer may. Raises ValueError if nothing could."""
        state, calls = progress.state, progress.calls
        if state is None:
            return np.ones(len(self.vocabulary), dtype=bool), True
        within = not progress.closed
        owed = calls - within < len(self.queries) and not (within and progress.looked)
        late = self.look_every is not None and progress.since >= self.look_every
        asked = calls - (state.kind == "query")
        rest = self.queries[asked] if asked < len(self.queries) else ""
        if state.kind == "query":
            rest = rest[progress.query :]
        close = state.kind == "query" and not rest and progress.query >= LONGEST_QUERY
        needs = Needs((owed or late) and can_point, close, can_point)
        point = can_point and state.kind == "region"
        mask = self._mask(state, needs, rest if needs.look else "")
        if not (point or mask.any()):
            raise ValueError(
                f"no token of this vocabulary can follow in a trace ({state}); it lacks single characters of "
                "the format"
            )
        return mask, point

    def _new_mask(self, state: State, needs: Needs, query: str) -> npt.NDArray[np.bool_]:
        """`[V]`: which tokens can be written from a state on, where the next query reads so, if any."""
        mask = np.zeros(len(self.vocabulary), dtype=bool)
        for first, tokens in self.vocabulary.by_first.items():
            if self._can_write(first, state, needs, query):
                texts = self.vocabulary.texts
                mask[[token for token in tokens if self._can_write(texts[token], state, needs, query)]] = True
        mask[self.vocabulary.stop] = may_end(state) and not needs.look
        return mask

    @staticmethod
    def _can_write(text: str, state: State, needs: Needs, query: str) -> bool:
        for char in text:
            if state.kind == "query" and query:
                if char != query[0]:
                    return False
                query = query[1:]
            following = after(state, char, needs)
            if following is None:
                return False
            state = following
        return True
