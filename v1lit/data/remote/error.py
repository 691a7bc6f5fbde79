"""What goes wrong with remote files: `RemoteError` (the file, the way to it) and `CacheError` (our disk)."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from v1lit.data.errors import ShardError

ADVICE = {
    "unreachable": "data.stream.attempts and data.stream.timeout say how long to try",
    "checksum": "the file was changed or damaged, or its index (index.json) is not up to date",
}
HINTS = {
    401: "are there credentials for it?",
    403: "are there credentials for it, and may they read it? (S3 answers this for a missing file as well)",
    404: "is the path right?",
    410: "is the path right?",
}


OURS = (
    *(ValueError, TypeError, AttributeError, LookupError, NameError, AssertionError, ImportError),
    *(MemoryError, RecursionError, NotImplementedError),
)
"""Errors that say nothing about a remote file, unless they are subclasses that a library made for that."""


class RemoteError(ShardError):
    """A remote file that could not be read.

    Args:
        url: of the file; passwords, signatures and tokens are taken out.
        attempts: how many were made.
        last: what went wrong in the last one.
        kind: "unreachable", or "checksum" where size or SHA-256 differ from what was expected.
        status: the HTTP status of the last attempt, None where there was none.
    """

    def __init__(
        self, url: str, attempts: int, last: str, kind: str = "unreachable", status: int | None = None
    ) -> None:
        self.url, self.attempts, self.last, self.status = shown(url), attempts, last, status
        tries = f"{attempts} attempt{'s' if attempts > 1 else ''}"
        hint = f" ({HINTS[status]})" if status in HINTS else ""
        super().__init__(
            self.url, None, f"not read in {tries}, the last one: {last}{hint}; {ADVICE[kind]}", kind
        )
        self.args = (f"{self.url}: {self.reason}",)  # Not every remote file is a shard.

    def __reduce__(self) -> tuple[type[RemoteError], Any]:
        return type(self), (self.url, self.attempts, self.last, self.kind, self.status)


class CacheError(ValueError):
    """The local disk, or the limit set for it, does not allow a download: no example is to blame for that."""


class ProblemError(Exception):
    """One failed attempt.

    Args:
        reason: what went wrong.
        final: another attempt would end in the same way.
        restart: what has been downloaded so far is worth nothing.
        wait: seconds that the server asks to wait.
    """

    def __init__(
        self,
        reason: str,
        *,
        final: bool = False,
        restart: bool = False,
        status: int | None = None,
        wait: float = 0.0,
        kind: str = "unreachable",
    ) -> None:
        super().__init__(reason)
        self.reason, self.final, self.restart, self.status = reason, final, restart, status
        self.wait, self.kind = wait, kind


def is_final(status: int | None) -> bool:
    """Whether an HTTP status says that asking again is useless."""
    return status is not None and 300 <= status < 500 and status not in (408, 425, 429)


def as_problem(error: Exception) -> ProblemError | None:
    """What an exception of a library means for the attempt; None for what is no failed attempt at all."""
    if isinstance(error, ProblemError):
        return error
    status = _status(error)
    if isinstance(error, FileNotFoundError):
        status = status or 404
    elif isinstance(error, PermissionError):
        status = status or 403
    elif isinstance(error, OURS) and not type(error).__module__.startswith(("aiohttp", "botocore")):
        return None
    no_credentials = "credential" in type(error).__name__.lower()
    return ProblemError(_reason(error, status), final=no_credentials or is_final(status), status=status)


def _reason(error: Exception, status: int | None) -> str:
    said = re.sub(r"\S+://\S+", lambda match: shown(match[0]), str(error))[:300]
    name = type(error).__name__
    text = f"{name}: {said}" if said else {"FSTimeoutError": "no answer in time"}.get(name, name)
    return f"status {status} ({text})" if status is not None else text


def _status(error: Exception) -> int | None:
    """The HTTP status that libraries keep in one place or another."""
    if type(error.__cause__).__module__.startswith("aiohttp"):
        return None  # An answer that is no HTTP; aiohttp calls that a 400.
    for cause in (error, error.__cause__):  # s3fs raises plain OSErrors from those of botocore.
        if isinstance(response := getattr(cause, "response", None), dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for thing in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            if isinstance(value := getattr(thing, name, None), int) and 100 <= value < 600:
                return value
    return None


def shown(url: str) -> str:
    """A URL as errors and logs may show it: passwords, and the values of a query, are left out."""
    if "://" not in url:
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0]
    host = parts.netloc.rpartition("@")
    netloc = f"***@{host[2]}" if host[1] else parts.netloc
    return urlunsplit((parts.scheme, netloc, parts.path, "***" if parts.query else "", parts.fragment))
