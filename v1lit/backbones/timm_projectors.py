"""From the features of a vision tower to image tokens: one small module per kind.

Features come image by image, `[patches, channels]`, cell by cell: the `scale` x `scale` patches that become
one token follow each other, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

HEAD = 64
"""Width of a head of the resampler's attention, at most."""


@dataclass(frozen=True)
class ProjectorSpec:
    """Which projector, as `config.json` says."""

    kind: str
    """A name in `KINDS`."""
    scale: int
    """Patches on each side of a cell."""
    tokens: int
    """Of an image, by a resampler that looks at all of it."""
    channels: int
    """Width of the tower's features."""
    hidden: int
    """Width of image tokens."""


class Linear(nn.Module):
    """One product."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.channels, spec.hidden)

    def forward(self, features: Tensor, patches: Sequence[int]) -> Tensor:
        """`[patches, channels] -> [patches, hidden]`; `patches` has how many are of each image."""
        out: Tensor = self.linear(features)
        return out


class Mlp(nn.Module):
    """Two products with a GELU between them. Source: LLaVA-1.5, arXiv 2310.03744, section 3.3."""

    def __init__(self, spec: ProjectorSpec, width: int = 1) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(spec.channels * width, spec.hidden)
        self.linear_2 = nn.Linear(spec.hidden, spec.hidden)

    def forward(self, features: Tensor, patches: Sequence[int]) -> Tensor:
        """`[patches, channels] -> [patches, hidden]`."""
        out: Tensor = self.linear_2(nn.functional.gelu(self.linear_1(features)))
        return out


class PixelShuffle(nn.Module):
    """The features of a cell side by side, a norm, and an MLP. Source: InternVL-1.5, arXiv 2404.16821."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        self.cell = spec.scale**2
        self.norm = nn.LayerNorm(spec.channels * self.cell)
        self.mlp = Mlp(spec, self.cell)

    def forward(self, features: Tensor, patches: Sequence[int]) -> Tensor:
        """`[patches, channels] -> [cells, hidden]`."""
        cells = features.unflatten(0, (-1, self.cell)).flatten(1)
        out: Tensor = self.mlp(self.norm(cells), patches)
        return out


class AveragePool(nn.Module):
    """The mean of a cell's features, and an MLP."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        self.cell = spec.scale**2
        self.mlp = Mlp(spec)

    def forward(self, features: Tensor, patches: Sequence[int]) -> Tensor:
        """`[patches, channels] -> [cells, hidden]`."""
        out: Tensor = self.mlp(features.unflatten(0, (-1, self.cell)).mean(1), patches)
        return out


class Attend(nn.Module):
    """Learned queries look at features, once: norm, attention, norm, MLP.

    Source: the resampler of Flamingo, arXiv 2204.14198, appendix A.1.1, with one layer.
    """

    def __init__(self, spec: ProjectorSpec, queries: int) -> None:
        super().__init__()
        width = spec.hidden
        self.heads = max(1, width // HEAD)
        while width % self.heads:
            self.heads -= 1
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.norm = nn.LayerNorm(spec.channels)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(spec.channels, width)
        self.value = nn.Linear(spec.channels, width)
        self.out = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def attend(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """`[groups, patches, channels] -> [groups, queries, hidden]`; nobody looks where `mask` is False."""
        features = self.norm(features)
        query = self.query(self.queries).expand(len(features), -1, -1)
        parts = (query, self.key(features), self.value(features))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = None if mask is None else mask[:, None, None]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        states = self.queries + self.out(mixed.transpose(1, 2).flatten(2))
        inner = nn.functional.gelu(self.up(self.norm_out(states)))
        out: Tensor = states + self.down(inner)
        return out


class Resampler(Attend):
    """A fixed number of tokens, each of which may look at the whole image: none has a place in it."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__(spec, spec.tokens)

    def forward(self, features: Tensor, patches: Sequence[int]) -> Tensor:
        """`[patches, channels] -> [images * tokens, hidden]`."""
        if len(set(patches)) == 1:
            return self.attend(features.unflatten(0, (len(patches), -1)), None).flatten(0, 1)
        rows = pad_sequence(list(features.split(list(patches))), batch_first=True)
        places = torch.arange(rows.shape[1], device=rows.device)
        mask = places < torch.tensor(list(patches), device=rows.device)[:, None]
        return self.attend(rows, mask).flatten(0, 1)


class LocalResampler(Attend):
    """One token for every cell, which may look at its own cell alone: attention gives it a place."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__(spec, 1)
        self.cell = spec.scale**2

    def forward(self, features: Tensor, patches: Sequence[int]) -> Tensor:
        """`[patches, channels] -> [cells, hidden]`."""
        return self.attend(features.unflatten(0, (-1, self.cell)), None).flatten(0, 1)


KINDS: dict[str, type[nn.Module]] = {
    "linear": Linear,
    "mlp": Mlp,
    "pixel_shuffle": PixelShuffle,
    "average_pool": AveragePool,
    "resampler": Resampler,
    "local_resampler": LocalResampler,
}
"""Projectors by name."""


def make_projector(spec: ProjectorSpec) -> nn.Module:
    """A fresh projector; `init_projector` draws its weights."""
    kind: Any = KINDS[spec.kind]
    made: nn.Module = kind(spec)
    return made
