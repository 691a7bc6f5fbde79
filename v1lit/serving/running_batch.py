"""A running batch: rows of different prompts that take their steps together, join at any step, and leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

from v1lit.backbones.cache_name import CACHE
from v1lit.data.encode.encoding import Encoded
from v1lit.pointer.memory import PointerMemory
from v1lit.pointer.model import PointAndCopyModel
from v1lit.serving.cache_rows import append_rows, cache_bytes, cache_length, keep_rows

Choose = Callable[[Tensor, Tensor], int]
"""The next id of `[1, tokens]`, by its joint logits `[1, V + own choices]`; see `Choice`."""


@dataclass(eq=False)
class Row:
    """One prompt and what has been generated behind it."""

    ids: Tensor
    """`[1, tokens]`: the prompt and all tokens that were chosen."""
    choose: Choose
    choices: int
    """What its pointers can choose from: its image tokens and, with some strategies, the end of a run."""
    cached: int
    """Tokens of it in the cache: all but the last chosen one."""
    noted: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    """Of every chosen token: logits of the pointers `[choices]`, the logarithm of the sum over the exponents
    of all joint logits, and the logit of the token; before any rule."""
    error: Exception | None = None
    """What its choice raised; then it has to leave, and no other row is concerned."""

    @property
    def last(self) -> int:
        """The id that was chosen last."""
        return int(self.ids[0, -1])


@dataclass
class Kept:
    """What the rows keep from step to step, in their order."""

    cache: Cache
    memory: PointerMemory
    positions: Tensor
    """`[..., rows, 1]`: rotary position of every row's last cached token, as its family counts."""

    @property
    def bytes(self) -> int:
        """What cache and pointer memory take."""
        return cache_bytes(self.cache) + self.memory.bytes

    def append(self, other: Kept) -> None:
        """Put the rows of `other` behind."""
        append_rows(self.cache, other.cache)
        self.memory = _joined(self.memory, other.memory)
        self.positions = torch.cat([self.positions, other.positions], dim=-2)

    def keep(self, rows: Sequence[int], tokens: int, choices: int) -> None:
        """Keep some rows alone: their last `tokens` tokens and first `choices` choices."""
        keep_rows(self.cache, rows, tokens)
        index = torch.tensor(rows, device=self.positions.device)
        self.positions = self.positions.index_select(-2, index)
        parts = (self.memory.keys, self.memory.values, self.memory.mask)
        self.memory = PointerMemory(*(part.index_select(0, index)[:, :choices] for part in parts))


class RunningBatch:
    """Generates for several prompts at once, a token each at every step.

    A prompt is prefilled alone. Its part of the cache is then put beside the others', padded on the left as
    in any batch of prompts, and its pointer memory on the right; so every row gets what it would get alone.
    Rows that leave free what only they needed.

    Args:
        model: in evaluation mode; its strategy must not need further images while it generates.
    """

    def __init__(self, model: PointAndCopyModel) -> None:
        self.model = model
        self.rows: list[Row] = []
        self.kept: Kept | None = None

    @torch.no_grad()
    def join(self, prompt: Encoded, choose: Choose) -> Row:
        """Prefill a prompt and choose its first token."""
        model, device = self.model, self.model.device
        ids = prompt.input_ids[None].to(device)
        images = {name: tensor.to(device) for name, tensor in prompt.image_inputs.items()}
        text = ids.masked_fill(ids >= model.config.pointer_start, 0)
        mask = torch.ones_like(ids)
        positions = model.family.positions(model.backbone, text, mask, **images)
        out = model(ids, mask, positions, use_cache=True, logits_to_keep=1, **images)
        memory = out.pointer_memory
        row = Row(ids, choose, memory.mask.shape[1], ids.shape[1])
        new = Kept(getattr(out, CACHE), memory, positions[..., -1:])
        if self.kept is None:
            self.kept = new
        else:
            self.kept.append(new)
        self.rows.append(row)
        self._choose(row, out.logits[:, -1])
        return row

    @torch.no_grad()
    def step(self) -> None:
        """Choose one more token of every row."""
        kept = self.kept
        if kept is None:
            return
        kept.positions = kept.positions + 1
        out = self.model(
            torch.cat([row.ids[:, -1:] for row in self.rows]),
            self._mask(cache_length(kept.cache) + 1),
            kept.positions,
            kept.cache,
            use_cache=True,
            logits_to_keep=1,
            pointer_memory=kept.memory,
        )
        for row, logits in zip(self.rows, out.logits, strict=True):
            row.cached += 1
            self._choose(row, logits)

    def leave(self, *rows: Row) -> None:
        """Take rows out."""
        stay = [index for index, row in enumerate(self.rows) if all(row is not one for one in rows)]
        self.rows = [self.rows[index] for index in stay]
        if not self.rows:
            self.kept = None
        elif self.kept is not None:
            tokens, choices = (max(row.cached for row in self.rows), max(row.choices for row in self.rows))
            self.kept.keep(stay, tokens, choices)

    def _mask(self, tokens: int) -> Tensor:
        """`[rows, tokens]`: 1 where a row has a token, the one of this step included."""
        lengths = torch.tensor([row.cached + 1 for row in self.rows])
        mask = torch.arange(tokens) >= tokens - lengths[:, None]
        return mask.long().to(self.model.device)

    def _choose(self, row: Row, logits: Tensor) -> None:
        config = self.model.config
        own = logits[:, : config.pointer_start + row.choices].clone()
        own[:, config.image_token_id] = -torch.inf
        try:
            token = row.choose(row.ids, own)
        except Exception as error:
            row.error, token = error, 0
        found = logits[0, : config.pointer_start + row.choices]
        row.noted.append((found[config.pointer_start :].clone(), found.logsumexp(0), found[token]))
        row.ids = F.pad(row.ids, (0, 1), value=token)


def _joined(memory: PointerMemory, other: PointerMemory) -> PointerMemory:
    """The rows of both, the shorter ones padded on the right."""
    widest = max(memory.mask.shape[1], other.mask.shape[1])

    def both(one: Any, two: Any) -> Tensor:
        pads = ([0, 0] * (one.ndim - 2) + [0, widest - part.shape[1]] for part in (one, two))
        return torch.cat([F.pad(part, pad) for part, pad in zip((one, two), pads, strict=True)])

    return PointerMemory(
        both(memory.keys, other.keys), both(memory.values, other.values), both(memory.mask, other.mask)
    )
