"""Reading from web servers, in the session of fsspec's HTTP file system.

Not with that file system's own `cat_file` and `get_file`: they believe a server that answers a range with
something else, and do not resume.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from v1lit.data.remote.answer import Body, RemoteInfo
from v1lit.data.remote.error import ProblemError, is_final
from v1lit.data.remote.filesystem import open_filesystem, run
from v1lit.data.remote.retry import Retry

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@contextmanager
def open_web(url: str, retry: Retry, start: int = 0, tag: str | None = None) -> Iterator[Body]:
    """As `open_body`, for http:// and https://."""
    with _request(url, retry, _range_headers(start, tag)) as (filesystem, response):
        first, total = _place(response, start)
        chunks = iter(partial(run, filesystem, response.content.readany, timeout=retry.timeout), b"")
        framed = total is not None or _is_chunked(response)
        yield Body(first, total, tag_of(response.headers), chunks, framed)


def look_up_web(url: str, retry: Retry) -> RemoteInfo:
    """As `look_up`. Asks for one byte: what is signed or allowed for GET may not be so for HEAD."""
    headers = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
    with _request(url, retry, headers) as (_, response):
        if response.status == 416:  # Of an empty file there is no first byte.
            return RemoteInfo(0, tag_of(response.headers))
        return RemoteInfo(_place(response, 0)[1], tag_of(response.headers))


def tag_of(headers: Any) -> str | None:
    """The strong ETag, else the date of the last change, else the weak ETag."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or etag


def can_resume(tag: str | None) -> bool:
    """Whether equal tags mean equal bytes; that of weak ETags does not."""
    return tag is not None and not tag.startswith("W/")


def _range_headers(start: int, tag: str | None) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}  # Sizes and ranges are those of the file itself.
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag is not None and can_resume(tag):
            headers["If-Range"] = tag
    return headers


@contextmanager
def _request(url: str, retry: Retry, headers: dict[str, str]) -> Iterator[tuple[Any, Any]]:
    filesystem = open_filesystem(url, retry)
    response = run(filesystem, _send, filesystem, url, headers, timeout=retry.timeout)
    try:
        _check(response)
        yield filesystem, response
    finally:
        run(filesystem, _close, response, timeout=retry.timeout)


async def _send(filesystem: Any, url: str, headers: dict[str, str]) -> Any:
    from aiohttp import ClientTimeout

    session = await filesystem.set_session()
    options = {**filesystem.kwargs, "timeout": ClientTimeout(total=None), "auto_decompress": False}
    options["headers"] = {**(options.get("headers") or {}), **headers}
    return await session.get(filesystem.encode_url(url), **options)


async def _close(response: Any) -> None:
    response.close()


def _check(response: Any) -> None:
    """Raise ProblemError unless the answer is the file, or a part of it as it is (or a 416)."""
    status = response.status
    if status in (200, 206, 416):
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding not in ("", "identity"):
            raise ProblemError(f"the server sends the file in the encoding {encoding!r:.40}", final=True)
        return
    reason = f"status {status} {response.reason or ''}".rstrip()
    final = is_final(status) or 200 <= status < 300
    raise ProblemError(reason, final=final, status=status, wait=_asked_wait(response.headers))


def _asked_wait(headers: Any) -> float:
    """Seconds of Retry-After. A date there is not worth the trouble of clocks that differ."""
    value = headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d{1,6}", value) else 0.0


def _place(response: Any, start: int) -> tuple[int, int | None]:
    """Which byte follows first, and the size of the whole file."""
    headers = response.headers
    if response.status == 200:
        return 0, None if _is_chunked(response) else response.content_length
    match = _CONTENT_RANGE.fullmatch(header := headers.get("Content-Range", "").strip())
    if response.status == 416 or match is None or match[1] is None or int(match[1]) != start:
        asked = f"bytes from {start} on were asked for"
        raise ProblemError(f"{asked}, the server answered {response.status} {header!r:.80}", restart=True)
    return start, None if match[3] == "*" else int(match[3])


def _is_chunked(response: Any) -> bool:
    return "chunked" in response.headers.get("Transfer-Encoding", "").lower()
