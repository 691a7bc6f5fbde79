"""Locations: local paths and URLs as strings; patterns of them expanded, small files read whole."""

from __future__ import annotations

import glob
import itertools
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from v1lit.data.errors import ShardError
from v1lit.data.remote.body import look_up, open_body
from v1lit.data.remote.download import check_framed
from v1lit.data.remote.error import RemoteError, shown
from v1lit.data.remote.filesystem import call, is_web, open_filesystem, scheme_of
from v1lit.data.remote.retry import DEFAULT_RETRY, Retry

log = logging.getLogger(__name__)

MAX_LOCATIONS = 10**6
_MAGIC = "*?["
_RANGE = re.compile(r"\{(-?\d{1,1000})\.\.(-?\d{1,1000})")


def is_remote(location: str | Path) -> bool:
    """Whether a location is a URL. One with an unknown scheme is, too: using it raises ValueError."""
    return scheme_of(str(location)) is not None


def is_pattern(location: str) -> bool:
    """Whether a location names files itself, as a .tar file or a pattern, rather than a folder of them."""
    path = location.partition("?")[0] if is_web(location) else location
    return path.endswith(".tar") or "{" in location or any(char in _MAGIC for char in path)


def may_be_folder(location: str) -> bool:
    """Whether a location is a local folder, or a URL that does not name files itself."""
    return not is_pattern(location) if is_remote(location) else os.path.isdir(location)


def expand(location: str, retry: Retry = DEFAULT_RETRY) -> list[str]:
    """All locations that a brace pattern ({000..099}, {a,b}) or a glob (*, ?, [..]) stands for.

    Sorted, each once. What holds no pattern comes back alone; a URL like that is not looked up, nor are those
    that braces alone make. In http(s):// URLs only * and [ are globs (? begins the query), and they need a
    server that lists its folders.

    Raises ValueError where nothing matches, a local file that is named in full is missing, there are more
    than a million locations, or braces do not match; RemoteError where the files of a store or server cannot
    be listed.
    """
    if not is_remote(location) and os.path.lexists(location):
        return [location]  # Also where a name holds characters of patterns.
    matches: set[str] = set()
    for pattern in unbrace(location):
        matches.update(
            _expand_remote(pattern, location, retry)
            if is_remote(pattern)
            else _expand_local(pattern, location)
        )
    return sorted(matches)


def join(folder: str, name: str) -> str:
    """The location of a file in a folder; a query of the folder's URL (a token, say) stays at the end.

    Raises ValueError for a name that is not that of a file right in the folder.
    """
    if not name or name in (".", "..") or any(char in "/\\" or ord(char) < 32 for char in name):
        raise ValueError(f"{name!r:.200} is not the name of a file in the folder {shown(folder)}")
    if not is_remote(folder):
        return os.path.join(folder, name)
    if not is_web(folder):
        return f"{folder.rstrip('/')}/{name}"
    parts = urlsplit(folder)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name, safe='*')}"))


def parent(location: str) -> str:
    """The folder that a file is in, the reverse of `join`: a query of the file's URL stays at the end."""
    if not is_remote(location):
        return os.path.dirname(location) or "."
    if not is_web(location):
        return location.rpartition("/")[0]
    parts = urlsplit(location)
    return urlunsplit(parts._replace(path=parts.path.rpartition("/")[0]))


def exists(location: str, retry: Retry = DEFAULT_RETRY) -> bool:
    """Whether a file is there. Of stores, that includes folders.

    Raises RemoteError where it cannot be told (status 403, for instance).
    """
    if not is_remote(location):
        return os.path.exists(location)
    try:
        retry.run(location, lambda: look_up(location, retry))
    except RemoteError as error:
        if error.status in (404, 410):
            return False
        raise
    return True


def is_open(location: str, retry: Retry = DEFAULT_RETRY) -> bool:
    """`exists`, but a file that we may not ask for (status 401 or 403) is as good as missing, and logged.

    For files that need not be there: of those, servers that do not list their folders tell no more, nor do
    those where every file has a signature of its own.
    """
    try:
        return exists(location, retry)
    except RemoteError as error:
        if error.status not in (401, 403):
            raise
        log.warning("%s is refused (status %d): continuing without it", shown(location), error.status)
        return False


def read_bytes(location: str, max_bytes: int, retry: Retry = DEFAULT_RETRY) -> bytes:
    """The content of a small file, local or remote; no more than `max_bytes` of it are ever in memory.

    Raises ShardError for a local file that cannot be read (kind "unreachable") or has more than `max_bytes`
    (kind "shard"), and RemoteError for a remote file that cannot be read.
    """
    if is_remote(location):
        return retry.run(location, lambda: _read_remote(location, max_bytes, retry))
    try:
        with open(location, "rb") as file:
            # As large as the file is, or one byte more than is accepted: `read` takes the memory first.
            data = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
    except OSError as error:
        raise ShardError(location, None, f"cannot be read ({error.strerror})", "unreachable") from error
    if len(data) > max_bytes:
        raise _too_large(location, max_bytes)
    return data


def _read_remote(url: str, max_bytes: int, retry: Retry) -> bytes:
    data = bytearray()
    with open_body(url, retry) as body:
        check_framed(body)
        if body.total is not None and body.total > max_bytes:
            raise _too_large(url, max_bytes)
        for chunk in body.chunks:
            if len(data) + len(chunk) > max_bytes:
                raise _too_large(url, max_bytes)
            data += chunk
    return bytes(data)


def _too_large(location: str, max_bytes: int) -> ShardError:
    return ShardError(shown(location), None, f"is larger than the {max_bytes} bytes allowed here", "shard")


def unbrace(location: str) -> list[str]:
    """What braces alone make of a location. Raises ValueError where they do not match, or make too many."""
    from braceexpand import braceexpand

    if "{" not in location and "}" not in location:
        return [location]
    try:
        # braceexpand holds every single range as a list.
        too_many = any(abs(int(b) - int(a)) >= MAX_LOCATIONS for a, b in _RANGE.findall(location))
        matches = (
            [] if too_many else list(itertools.islice(braceexpand(location, escape=False), MAX_LOCATIONS + 1))
        )
    except ValueError as error:
        raise ValueError(f"{shown(location)}: the braces do not match ({error})") from error
    if too_many or len(matches) > MAX_LOCATIONS:
        raise ValueError(f"{shown(location)} stands for more than {MAX_LOCATIONS} locations")
    return matches


def _expand_local(location: str, whole: str) -> list[str]:
    if os.path.lexists(location):
        return [location]
    folder, name = os.path.split(location)
    # Brackets of a folder that is really called so are no pattern.
    pattern = os.path.join(glob.escape(folder), name) if os.path.isdir(folder) else location
    matches = glob.glob(pattern, recursive=True) if glob.has_magic(pattern) else []
    if not matches:
        raise _nothing(location, whole)
    return matches


def _expand_remote(url: str, whole: str, retry: Retry) -> Iterable[str]:
    on_web = is_web(url)
    path = url.partition("?")[0] if on_web else url
    if not any(char in _MAGIC for char in path):
        return [url]
    filesystem = open_filesystem(url, retry)
    # A listing is many requests, each with the limits of the library.
    pattern = url if on_web else filesystem._strip_protocol(url)
    filesystem.invalidate_cache()
    matches = retry.run(url, lambda: call(filesystem, "glob", pattern, timeout=10 * retry.timeout))
    if not matches:
        raise _nothing(url, whole)
    return matches if on_web else [f"{scheme_of(url)}://{name}" for name in matches]


def _nothing(location: str, whole: str) -> ValueError:
    of = f" (of {shown(whole)})" if whole != location else ""
    return ValueError(f"nothing matches {shown(location)}{of}: is the path right?")
