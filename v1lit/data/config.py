"""Options of the data side: where examples come from and how they become tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class SourceConfig:
    """Where the shards come from. Sources other than `shards` write their shards once and then reuse them."""

    name: str = "shards"
    """`shards` (they exist already), `synthetic` (drawn), `v1g` (imported from parquet)."""
    folder: str = "data/shards"
    """Folder that holds, or will hold, the shards in `train/` and `val/`."""
    path: str | None = None
    """What an importing source reads: a file, a folder or a hub id."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the source, checked against what it takes."""


@dataclass(frozen=True)
class EncodingConfig:
    """How an example becomes token ids and labels."""

    max_tokens: int = 8192
    """Longest sequence in tokens, image and pointer tokens included; longer ones are cut at the end."""
    supervise: Literal["assistant", "all"] = "assistant"
    """Learn the assistant's part only, or everything but image tokens (as the published run did)."""
    coordinates: bool = True
    """Write `[x1, y1, x2, y2]` (shares of the sides) before a region's pointers, as published."""

    def __post_init__(self) -> None:
        if self.max_tokens < 8:
            raise ValueError(f"data.encoding.max_tokens is {self.max_tokens}; at least 8 are needed")
        if self.supervise not in ("assistant", "all"):
            raise ValueError(f"data.encoding.supervise is {self.supervise!r}; allowed: assistant, all")


@dataclass(frozen=True)
class PackingConfig:
    """Which examples share a row. Without a `length`, always `data.batch_size` of them."""

    length: int | None = None
    """Tokens of a row, filled with as many examples as fit best; at least `data.encoding.max_tokens`."""
    look_ahead: int = 128
    """Examples that wait to be chosen, in every worker, images included: more fill rows better."""
    max_images: int | None = None
    """Images of a row at most."""
    max_image_tokens: int | None = None
    """Image tokens of a row at most, which bounds the memory of the vision tower."""

    def __post_init__(self) -> None:
        for name in ("length", "look_ahead", "max_images", "max_image_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.packing.{name} is {value}; give 1 or more")
            if self.length is None and value is not None and name.startswith("max_"):
                raise ValueError(
                    f"data.packing.{name} is {value}, but without data.packing.length rows are not filled; "
                    "give a length, or leave it out"
                )
