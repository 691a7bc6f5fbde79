"""What a server answers about a remote file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Body:
    """An answer under way."""

    start: int
    """Byte of the file at which `chunks` begin: the one asked for, or 0."""
    total: int | None
    """Bytes of the whole file, None where the server does not say."""
    tag: str | None
    """What changes when the file does (its ETag, say), None where there is nothing."""
    chunks: Iterator[bytes]
    """The content, in pieces of any size."""
    framed: bool = True
    """False where a cut-off answer would look like a whole one."""


class RemoteInfo(NamedTuple):
    """What is known of a remote file without reading it; `size` and `tag` as `total` and `tag` of `Body`."""

    size: int | None
    tag: str | None
    is_folder: bool = False
