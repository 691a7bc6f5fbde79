"""Reading from object stores (s3, gs, az, hf), block by block, through their fsspec file systems."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from v1lit.data.remote.answer import Body, RemoteInfo
from v1lit.data.remote.error import ProblemError
from v1lit.data.remote.filesystem import call, open_filesystem
from v1lit.data.remote.retry import Retry

BLOCK_BYTES = 8 * 2**20
TAGS = ("ETag", "etag", "generation", "blob_id", "LastModified", "last_modified", "mtime")


@contextmanager
def open_object(url: str, retry: Retry, start: int = 0, tag: str | None = None) -> Iterator[Body]:
    """As `open_body`. A version cannot be asked for: what changed meanwhile is read from its beginning."""
    total, found, is_folder = look_up_object(url, retry)
    if is_folder:
        raise ProblemError("this is a folder, not a file", final=True)
    if total is None:
        raise ProblemError("the store does not say how large the file is", final=True)
    if start > total or (tag is not None and tag != found):
        start = 0
    yield Body(start, total, found, _blocks(url, retry, start, total, found))


def look_up_object(url: str, retry: Retry) -> RemoteInfo:
    """As `look_up`."""
    filesystem = open_filesystem(url, retry)
    path = filesystem._strip_protocol(url)
    info = _info(filesystem, path, retry)
    tag = next((str(info[name]) for name in TAGS if info.get(name)), None)
    return RemoteInfo(info.get("size"), tag, info.get("type") == "directory")


def _blocks(url: str, retry: Retry, start: int, total: int, tag: str | None) -> Iterator[bytes]:
    filesystem = open_filesystem(url, retry)
    path = filesystem._strip_protocol(url)
    options = {"size": total, "cache_type": "none"} if _is_hf(filesystem) else {}  # Nothing beyond the block.
    while start < total:
        end = min(start + BLOCK_BYTES, total)
        place = {"start": start, "end": end}
        block: Any = call(filesystem, "cat_file", path, timeout=retry.timeout, **place, **options)
        if len(block) > end - start:
            raise ProblemError(f"the store sent more than bytes {start} to {end}", restart=True)
        yield bytes(block)
        if len(block) < end - start:
            raise ProblemError(f"the store sent {len(block)} of the {end - start} bytes from {start} on")
        start = end
    # Blocks are requests of their own: the file may have been replaced between two of them.
    if look_up_object(url, retry)[:2] != (total, tag):
        raise ProblemError("the file was replaced while it was read", restart=True)


def _info(filesystem: Any, path: str, retry: Retry) -> Any:
    if not _is_hf(filesystem):
        return call(filesystem, "info", path, timeout=retry.timeout)
    try:  # It lists the folder once, and believes that for ever.
        return filesystem.info(path, refresh=True)
    except FileNotFoundError:
        filesystem.invalidate_cache()
        return filesystem.info(path)


def _is_hf(filesystem: Any) -> bool:
    return filesystem.protocol == "hf"
