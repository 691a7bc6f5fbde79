"""Options of the data side: where examples come from and how they become tokens."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from v1lit.backbones.config import as_options
from v1lit.data.remote.retry import Retry
from v1lit.errors import OptionError, check_choices, check_fields, check_least
from v1lit.paths import expand_fields, expand_within


@dataclass(frozen=True)
class MixtureConfig:
    """One of several sources of training examples."""

    shards: str
    """Location of its shards: a folder, a file, a pattern such as `s3://bucket/shard-{000..099}.tar`."""
    weight: float | None = None
    """Its share of the examples, relative to the other weights; without weights, all that each has."""
    limit: int | None = None
    """Examples of it per epoch at most; the next epoch takes the ones behind them."""
    name: str | None = None
    """What its loss and accuracy are logged as, `train/loss/NAME`; when not given, from its location."""
    val: str | None = None
    """Location of the shards to validate on beside those of the other sources."""
    GROUP: ClassVar[str] = "data.source.mixture"
    PATHS: ClassVar[tuple[str, ...]] = ("shards", "val")

    def __post_init__(self) -> None:
        expand_fields(self)
        check_least(self, 1, "limit")
        if self.name is not None and not re.fullmatch(r"[\w.-]+", self.name):
            raise OptionError("name", self.name, "give letters, digits, '-', '_' and '.'", self.GROUP)


@dataclass(frozen=True)
class SourceConfig:
    """Where the shards come from. Sources other than `shards` write their shards once and then reuse them."""

    name: str = "shards"
    """`shards` (they exist already), `synthetic` (drawn), `v1g` (from parquet), `webdataset` (a stream)."""
    folder: str = "data/shards"
    """Folder or URL that holds, or will hold, the shards in `train/` and `val/`."""
    mixture: list[MixtureConfig] = field(default_factory=list)
    """Train on these sources together, in place of `folder`'s `train/`."""
    val: str | None = None
    """Location of the shards to validate on, in place of `folder`'s `val/`, or of a mixture's `val` parts."""
    path: str | None = None
    """What is imported: a file, a folder or a hub id. What is streamed: files, URLs and `pipe:` commands."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the source, checked against what it takes."""
    GROUP: ClassVar[str] = "data.source"
    PATHS: ClassVar[tuple[str, ...]] = ("folder", "val", "path")

    def __post_init__(self) -> None:
        expand_fields(self)
        object.__setattr__(self, "options", expand_within(self.options))
        object.__setattr__(self, "mixture", [as_options(MixtureConfig, source) for source in self.mixture])
        names = [source.name for source in self.mixture if source.name is not None]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            why = f"two sources are named {twice[0]!r}; give each a name of its own"
            raise OptionError("mixture", names, why, self.GROUP)
        if self.val is not None and any(source.val is not None for source in self.mixture):
            why = "sources of the mixture have a `val` of their own; give one or the other"
            raise OptionError("val", self.val, why, self.GROUP)


@dataclass(frozen=True)
class EncodingConfig:
    """How an example becomes token ids and labels."""

    max_tokens: int = 8192
    """Longest sequence in tokens, image and pointer tokens included; longer ones are cut at the end."""
    supervise: Literal["assistant", "all"] = "assistant"
    """Learn the assistant's part only, or everything but image tokens (as the published run did)."""
    coordinates: bool = True
    """Write `[x1, y1, x2, y2]` (shares of the sides) before a region's pointers, as published."""

    GROUP: ClassVar[str] = "data.encoding"

    def __post_init__(self) -> None:
        check_choices(self)
        check_least(self, 8, "max_tokens")


@dataclass(frozen=True)
class PackingConfig:
    """Which examples share a row. Without a `length`, always `data.batch_size` of them."""

    length: int | None = None
    """Tokens of a row, filled with as many examples as fit best; at least `data.encoding.max_tokens`."""
    look_ahead: int = 128
    """Examples that wait to be chosen for a row, by their lengths alone: more fill rows better."""
    max_images: int | None = None
    """Images of a row at most."""
    max_image_tokens: int | None = None
    """Image tokens of a row at most, which bounds the memory of the vision tower."""

    GROUP: ClassVar[str] = "data.packing"

    def __post_init__(self) -> None:
        check_least(self, 1, "length", "look_ahead", "max_images", "max_image_tokens")
        if self.length is None:
            why = "without data.packing.length rows are not filled; give a length, or leave it out"
            check_fields(self, ["max_images", "max_image_tokens"], lambda limit: False, why)

    def check_lengths(self, encoding: EncodingConfig) -> None:
        """Raise OptionError where an example may be longer than a row."""
        length, longest = self.length, encoding.max_tokens
        if length is not None and longest > length:
            why = (
                f"data.packing.length is {length}, so an example may be {longest - length} tokens longer "
                f"than a row: set data.encoding.max_tokens={length} or less, or data.packing.length="
                f"{longest} or more"
            )
            raise OptionError("max_tokens", longest, why, encoding.GROUP)

    def check_packs(self, backbone: str, packs: bool) -> None:
        """Raise OptionError where rows are to be filled and the backbone cannot keep their examples apart."""
        if self.length is not None and not packs:
            why = (
                f"the backbone {backbone!r} cannot keep the examples of a row apart: set "
                "data.packing.length=null, and data.group_by_length=16 or so to pad little"
            )
            raise OptionError("length", self.length, why, self.GROUP)


@dataclass(frozen=True)
class StreamConfig:
    """How shards are read: their order, what is kept on disk, and what bad examples may do."""

    shuffle_window: int = 10_000
    """Examples that are permuted together, after the shards were; about this many are mixed."""
    lanes: int = 1
    """Parts of the data that are read side by side, position i of an epoch from part i % lanes. A multiple
    of the number of ranks lets every rank read shards of its own; 1 lets all ranks read all shards."""
    tail: Literal["pad", "drop"] = "pad"
    """Examples that do not make a whole optimizer step: a smaller last step, or left out of this epoch."""
    on_bad: Literal["skip", "stop"] = "skip"
    """What an example does that cannot be used: it is counted and listed, or it stops the run."""
    max_bad_fraction: float = 0.01
    """More skipped examples than this share of those read (or of 1,000, early on) stop the run."""
    max_bad_in_a_row: int = 50
    """More skipped examples one after another stop the run."""
    max_seconds: float | None = 60.0
    """Longest time to read, decode and encode one example, in seconds."""
    cache: str | None = None
    """Folder on a local disk for remote shards; `v1lit` in XDG_CACHE_HOME, or in ~/.cache, when not given."""
    cache_gb: float = 100.0
    """Most that the cache holds, in GB (10^9 bytes); what was used longest ago goes first. It should hold the
    shards of two shuffle windows per lane."""
    attempts: int = 8
    """How often a remote file is tried before it counts as unreachable."""
    timeout: float = 60.0
    """Seconds without a byte after which a connection is given up and tried again."""
    GROUP: ClassVar[str] = "data.stream"
    PATHS: ClassVar[tuple[str, ...]] = ("cache",)

    @property
    def retry(self) -> Retry:
        """How patiently remote files are asked for."""
        return Retry(attempts=self.attempts, timeout=self.timeout)

    @property
    def cache_folder(self) -> Path:
        """Where remote shards and measured lengths are kept."""
        if self.cache is not None:
            return Path(self.cache)
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "v1lit"

    def __post_init__(self) -> None:
        expand_fields(self)
        check_choices(self)
        check_least(self, 1, "shuffle_window", "lanes", "max_bad_in_a_row", "attempts")
        positive = ("cache_gb", "timeout", "max_seconds")
        check_fields(self, positive, lambda amount: amount > 0, "it must be positive")
        check_fields(self, ["max_bad_fraction"], lambda share: 0 <= share <= 1, "it is between 0 and 1")
