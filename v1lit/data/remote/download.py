"""`download`: one file onto the local disk, resumed after faults, verified while it comes in."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v1lit.data.remote.answer import Body
from v1lit.data.remote.body import open_body
from v1lit.data.remote.error import CacheError, ProblemError
from v1lit.data.remote.retry import DEFAULT_RETRY, Retry
from v1lit.data.remote.web import can_resume
from v1lit.files import write_atomically

STEP = 64 * 2**20
Reserve = Callable[[int, int], int]
"""Takes the bytes that a file will have, and may have on top; returns the size up to which all is granted."""


@dataclass(frozen=True)
class DownloadResult:
    """What was downloaded: size in bytes, SHA-256 in hexadecimal, tag of the version (its ETag, say)."""

    bytes: int
    sha256: str
    tag: str | None


def download(
    url: str,
    path: str | Path,
    size: int | None = None,
    sha256: str | None = None,
    retry: Retry = DEFAULT_RETRY,
) -> DownloadResult:
    """Download a file; `path` appears when it is complete.

    It grows beside `path`, in `.<name>.part`. What an interrupted call has left there is resumed, where
    the server can and the file is still the same. Only one process at a time may download to a path.

    Args:
        size, sha256: expected size in bytes and SHA-256, where known.

    Raises RemoteError where the file cannot be read or is not the expected one (kind "checksum"), CacheError
    where it cannot be written, and ValueError for an unknown scheme or one whose package is missing.
    """
    path = Path(path)
    part = PartialFile(path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.note"))
    with part:
        done = fill(part, url, size, sha256, retry)
        part.become(path)
    return done


def fill(
    part: PartialFile,
    url: str,
    size: int | None,
    sha256: str | None,
    retry: Retry,
    reserve: Reserve = lambda size, more: sys.maxsize,
) -> DownloadResult:
    """Complete a part, verified. `reserve` is asked for room before the bytes come."""

    def attempt() -> DownloadResult:
        try:
            if size is None or part.size != size:
                _read_on(part, url, size, sha256, retry, reserve)
            digest = part.sha256.hexdigest()
            if sha256 is not None and digest != sha256.lower():
                raise _mismatch(f"the file has the SHA-256 {digest}, {sha256.lower()} was expected")
            return DownloadResult(part.size, digest, part.tag)
        except ProblemError as problem:
            if problem.restart:
                part.restart(None)
            raise

    return retry.run(url, attempt)


def _read_on(
    part: PartialFile, url: str, size: int | None, sha256: str | None, retry: Retry, reserve: Reserve
) -> None:
    # Without a tag only the SHA-256 can tell whether the rest belongs to what is there.
    start = part.size if can_resume(part.tag) or sha256 is not None else 0
    with open_body(url, retry, start, part.tag if start else None) as body:
        if size is not None and body.total not in (None, size):
            raise _mismatch(f"the file has {body.total} bytes, {size} were expected")
        if size is None and sha256 is None:
            check_framed(body)
        if body.start == 0 or body.start != part.size:
            part.restart(body.tag)
        elif part.tag is not None and body.tag != part.tag:
            raise ProblemError("the file was replaced while it was read", restart=True)
        _append(part, body, size if size is not None else body.total, reserve)


def _append(part: PartialFile, body: Body, total: int | None, reserve: Reserve) -> None:
    room = reserve(total, 0) if total is not None else 0
    for chunk in body.chunks:
        size = part.size + len(chunk)
        if total is not None and size > total:
            raise _mismatch(f"there are more than the {total} bytes expected")
        if size > room:
            room = reserve(size, STEP)
        part.write(chunk)
    if total is not None and part.size < total:
        raise ProblemError(f"the answer ended after {part.size} of {total} bytes")


def check_framed(body: Body) -> None:
    """Refuse what nobody could tell from its first half."""
    if not body.framed:
        raise ProblemError("the server does not say how long the file is (no Content-Length)", final=True)


def _mismatch(reason: str) -> ProblemError:
    return ProblemError(reason, restart=True, kind="checksum")


class PartialFile:
    """A file under way, and a note beside it of what it is a part of. Resumes what is there.

    Use as a context manager: closed at its end, and removed where it holds nothing or the disk is full.
    """

    def __init__(self, path: Path, note: Path) -> None:
        self.path, self.note_path = path, note
        tag = read_json(note).get("tag")
        self.size, self.tag, self.reserved = 0, tag if isinstance(tag, str) and tag.isprintable() else None, 0
        self.sha256 = hashlib.sha256()
        try:
            self._file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise disk_error(path, error) from error
        while block := self._file.read(2**20):
            self.sha256.update(block)
            self.size += len(block)

    def restart(self, tag: str | None) -> None:
        """Begin again, with a file of this tag."""
        try:
            self._file.seek(0)
            self._file.truncate()
        except OSError as error:
            raise disk_error(self.path, error) from error
        self.size, self.tag, self.sha256 = 0, tag, hashlib.sha256()
        self.write_note()

    def write(self, chunk: bytes) -> None:
        """Append bytes. Raises CacheError."""
        try:
            written = 0
            while written < len(chunk):
                written += self._file.write(memoryview(chunk)[written:])
        except OSError as error:
            raise disk_error(self.path, error) from error
        self.sha256.update(chunk)
        self.size += len(chunk)

    def write_note(self) -> None:
        write_json(self.note_path, {"tag": self.tag, "reserved": self.reserved})

    def become(self, path: Path) -> None:
        """Give the complete file its name."""
        self._file.close()
        try:
            os.replace(self.path, path)
        except OSError as error:
            raise disk_error(path, error) from error
        self.note_path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete what is there, and its note."""
        self._file.close()
        self.path.unlink(missing_ok=True)
        self.note_path.unlink(missing_ok=True)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._file.close()
        if error is not None and (self.size == 0 or isinstance(error, CacheError)):
            self.remove()


def read_json(path: Path) -> dict[str, Any]:
    """A note, {} where there is none or it is damaged: what it was about is then read again."""
    try:
        note = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def write_json(path: Path, note: dict[str, Any]) -> None:
    """Write a note aside, then give it its name. CacheError where the disk refuses."""
    try:
        write_atomically(path, json.dumps(note))
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> CacheError:
    """What to tell when the local disk refuses."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CacheError(
            f"the disk of {path.parent} is full ({error.strerror}): make room, choose another folder "
            "(data.stream.cache), or lower data.stream.cache_gb"
        )
    return CacheError(f"{path} cannot be written ({error.strerror}): check the folder (data.stream.cache)")
