"""`open_body`: the bytes of a remote file from some place on, as they come in, from wherever it lies."""

from __future__ import annotations

from contextlib import AbstractContextManager

from v1lit.data.remote.answer import Body, RemoteInfo
from v1lit.data.remote.filesystem import is_web
from v1lit.data.remote.retry import Retry
from v1lit.data.remote.store import look_up_object, open_object
from v1lit.data.remote.web import look_up_web, open_web


def open_body(url: str, retry: Retry, start: int = 0, tag: str | None = None) -> AbstractContextManager[Body]:
    """Begin one attempt to read a file from byte `start` on, of the version `tag` (None: whichever it is).

    Raises ProblemError where the attempt failed (other errors of the libraries are told apart by
    `as_problem`), and ValueError for an unknown scheme or one whose package is missing.
    """
    return (open_web if is_web(url) else open_object)(url, retry, start, tag)


def look_up(url: str, retry: Retry) -> RemoteInfo:
    """What is known of a remote file, in one attempt, without its content. Raises as `open_body`."""
    return (look_up_web if is_web(url) else look_up_object)(url, retry)
