"""`open_body`: the bytes of a remote file from some place on, as they come in, from wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from v1lit.data.remote.filesystem import scheme_of
from v1lit.data.remote.retry import Retry


@dataclass(frozen=True)
class Body:
    """An answer under way.

    Attributes:
        start: byte of the file at which `chunks` begin: the one asked for, or 0.
        total: bytes of the whole file, None where the server does not say.
        tag: what changes when the file does (its ETag, say), None where there is nothing.
        chunks: the content, in pieces of any size.
        framed: False where a cut-off answer would look like a whole one.
    """

    start: int
    total: int | None
    tag: str | None
    chunks: Iterator[bytes]
    framed: bool = True


class Found(NamedTuple):
    """What is known of a remote file without reading it; `size` and `tag` as `total` and `tag` of `Body`."""

    size: int | None
    tag: str | None
    is_folder: bool = False


def open_body(url: str, retry: Retry, start: int = 0, tag: str | None = None) -> AbstractContextManager[Body]:
    """Begin one attempt to read a file from byte `start` on, of the version `tag` (None: whichever it is).

    Raises:
        ProblemError: the attempt failed; other errors of the libraries are told apart by `as_problem`.
        ValueError: no such scheme, or its package is missing.
    """
    if scheme_of(url) in ("http", "https"):
        from v1lit.data.remote.web import open_web

        return open_web(url, retry, start, tag)
    from v1lit.data.remote.store import open_object

    return open_object(url, retry, start, tag)


def look_up(url: str, retry: Retry) -> Found:
    """What is known of a remote file, in one attempt, without its content. Raises as `open_body`."""
    if scheme_of(url) in ("http", "https"):
        from v1lit.data.remote.web import look_up_web

        return look_up_web(url, retry)
    from v1lit.data.remote.store import look_up_object

    return look_up_object(url, retry)
