"""`open_body`: the bytes of a remote file from some place on, as they come in, from wherever it lies."""

from __future__ import annotations

from contextlib import AbstractContextManager

from v1lit.data.remote.answer import Body, RemoteInfo
from v1lit.data.remote.filesystem import scheme_of
from v1lit.data.remote.retry import Retry


def open_body(url: str, retry: Retry, start: int = 0, tag: str | None = None) -> AbstractContextManager[Body]:
    """Begin one attempt to read a file from byte `start` on, of the version `tag` (None: whichever it is).

    Raises ProblemError where the attempt failed (other errors of the libraries are told apart by
    `as_problem`), and ValueError for an unknown scheme or one whose package is missing.
    """
    if scheme_of(url) in ("http", "https"):
        from v1lit.data.remote.web import open_web

        return open_web(url, retry, start, tag)
    from v1lit.data.remote.store import open_object

    return open_object(url, retry, start, tag)


def look_up(url: str, retry: Retry) -> RemoteInfo:
    """What is known of a remote file, in one attempt, without its content. Raises as `open_body`."""
    if scheme_of(url) in ("http", "https"):
        from v1lit.data.remote.web import look_up_web

        return look_up_web(url, retry)
    from v1lit.data.remote.store import look_up_object

    return look_up_object(url, retry)
