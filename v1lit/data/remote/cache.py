"""`ShardCache`: remote files on the local disk, within a limit, shared by all processes that use the folder.

    files/<name>        complete files; the time of the last use is their time of modification
    notes/<name>        what is known of each: size, SHA-256, tag of the version, inode
    parts/<name>.part   a download under way, or left by a killed process: the next one resumes it
    locks/<name>        empty, stays; locked by the process that downloads, unlocked at its end by the system

<name> is the SHA-256 of the URL and the readable end of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from v1lit.data.remote.body import look_up
from v1lit.data.remote.download import PartialFile, disk_error, fill, read_json, write_json
from v1lit.data.remote.error import CacheError, shown
from v1lit.data.remote.location import is_remote
from v1lit.data.remote.retry import DEFAULT_RETRY, Retry
from v1lit.files import sha256_of

FOLDERS = ("files", "notes", "parts", "locks")
log = logging.getLogger(__name__)


class ShardCache:
    """Remote files on the local disk.

    Any number of processes, also of several runs, may use one folder with one limit. A file that several want
    is downloaded by one of them, the others wait. When room is needed, what was not used for longest is
    deleted, unfinished downloads that nobody works on included. A file that a process has open can be deleted
    too: it can still read it, and the bytes count no longer, though the disk holds them until it is closed.

    Args:
        folder: made if missing; only four folders in it are touched.
        max_bytes: limit for all complete and unfinished files together (data.stream.cache_gb). It should hold
            a few files for each process, else they delete what others have just downloaded.
        retry: how often to try, and how long a download may take.

    Raises CacheError where the folder cannot be written, and ValueError where `max_bytes` is not above 0.
    """

    def __init__(self, folder: str | Path, max_bytes: int, retry: Retry = DEFAULT_RETRY) -> None:
        if max_bytes <= 0:
            raise ValueError(f"data.stream.cache_gb must be above 0, given {max_bytes} bytes")
        self.folder, self.max_bytes, self.retry = Path(folder), max_bytes, retry
        self._current: set[str] = set()  # Names of files that are as on the server, asked for or downloaded.
        for name in FOLDERS:
            try:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise disk_error(self.folder / name, error) from error

    def fetch(self, location: str, size: int | None = None, sha256: str | None = None) -> Path:
        """The local path of a file; a local location comes back as it is.

        Another process may delete the file at any time: open it right away, and fetch once more where it is
        gone. Where neither size nor SHA-256 is given, the server is asked once per process (and those forked
        from it) whether the file it has is still the same, by size and ETag.

        Args:
            size, sha256: expected size in bytes and SHA-256, where known; another file is downloaded anew.

        Raises RemoteError where it cannot be read or is not the expected one (kind "checksum"); CacheError
        where the disk is full, the file is larger than the limit, or other downloads leave no room for it;
        ValueError for an unknown scheme or one whose package is missing.
        """
        if not is_remote(location):
            return Path(location)
        entry = _Entry(self.folder, name_of(location), location)
        for _ in range(3):  # Another process may delete it before it counts as used.
            if not self._has(entry, size, sha256):
                with self._locked(entry):
                    self._adopt(entry)
                    if not self._has(entry, size, sha256):  # Perhaps it came while we waited.
                        self._download(entry, size, sha256)
            if _touch(entry.file):
                break
        return entry.file

    def discard(self, location: str, sha256: str | None = None) -> None:
        """Delete the copy of a remote file (it is damaged, say); the next `fetch` downloads it.

        Args:
            sha256: a copy that has it is good, and kept: another process may have been faster.

        Raises CacheError where the folder cannot be written.
        """
        if not is_remote(location):
            return
        entry = _Entry(self.folder, name_of(location), location)
        with self._locked(entry):
            try:
                if sha256 is None or sha256_of(entry.file) != sha256.lower():
                    self._delete(entry)
            except FileNotFoundError:
                return
            except OSError as error:
                raise disk_error(entry.file, error) from error

    # --- one file ---

    def _has(self, entry: _Entry, size: int | None, sha256: str | None) -> bool:
        """Whether the file is there, whole, and the right one."""
        note = self._note(entry)
        if note is None or (size is not None and size != note["size"]):
            return False
        if sha256 is not None:
            return bool(note["sha256"] == sha256.lower())
        if size is None and entry.name not in self._current:
            info = self.retry.run(entry.url, lambda: look_up(entry.url, self.retry))
            if info.tag != note["tag"] or info.size not in (None, note["size"]):
                return False
            self._current.add(entry.name)
        return True

    def _note(self, entry: _Entry) -> dict[str, Any] | None:
        """The note of a file; None where there is no file of just that inode and size."""
        try:
            status = entry.file.stat()
        except OSError:
            return None
        note = read_json(entry.note)
        return note if (note.get("inode"), note.get("size")) == (status.st_ino, status.st_size) else None

    def _adopt(self, entry: _Entry) -> None:
        """Take in a file that has another inode than its note says: the folder was copied, say."""
        note = read_json(entry.note)
        with suppress(FileNotFoundError):
            inode = entry.file.stat().st_ino
            if note and note.get("inode") != inode and note.get("sha256") == sha256_of(entry.file):
                write_json(entry.note, {**note, "inode": inode})

    def _download(self, entry: _Entry, size: int | None, sha256: str | None) -> None:
        if size is not None:
            self._check_limit(entry.url, size)
        with PartialFile(entry.part, entry.part_note) as part:
            reserve = partial(self._reserve, entry, part)
            done = fill(part, entry.url, size, sha256, self.retry, reserve)
            inode = part.path.stat().st_ino  # The file keeps it: a note of another file is told by it.
            note = {"size": done.bytes, "sha256": done.sha256, "tag": done.tag, "inode": inode}
            write_json(entry.note, {**note, "url": shown(entry.url)})
            part.become(entry.file)
        self._current.add(entry.name)

    def _delete(self, entry: _Entry) -> None:
        for path in (entry.file, entry.note, entry.part, entry.part_note):
            path.unlink(missing_ok=True)

    # --- locks ---

    @contextmanager
    def _locked(self, entry: _Entry) -> Iterator[None]:
        """Hold the lock of a file; whoever holds it now may take long, but must get on."""
        from filelock import FileLock, Timeout

        lock = FileLock(entry.lock)
        before: object = None
        while True:
            try:
                lock.acquire(timeout=self.retry.patience)
                break
            except Timeout:
                now = -1
                with suppress(OSError):
                    now = entry.part.stat().st_size
                if now == before:
                    raise CacheError(
                        f"{shown(entry.url)}: another process downloads it to {self.folder}, but got "
                        f"no byte in {self.retry.patience:.0f} s: does it hang? (it holds {entry.lock})"
                    ) from None
                before = now
        try:
            yield
        finally:
            lock.release()

    # --- room ---

    def _check_limit(self, url: str, size: int) -> None:
        if size > self.max_bytes:
            raise CacheError(
                f"{shown(url)} has {size} bytes or more, the whole cache may hold {self.max_bytes}: "
                "raise data.stream.cache_gb"
            )

    def _reserve(self, entry: _Entry, part: PartialFile, size: int, more: int) -> int:
        """Make room for a file of `size` bytes, and for `more` if the limit allows; note that it is taken."""
        from filelock import FileLock

        self._check_limit(entry.url, size)
        size = min(size + more, self.max_bytes)
        waited, before = 0.0, -1
        while True:
            with FileLock(self.folder / "locks" / "room"):
                free = self._make_room(entry, size)
                if free >= size:
                    part.reserved = size
                    part.write_note()
                    return size
            # All the rest is being downloaded by others: they get on, or end.
            if free == before and waited > self.retry.patience:
                raise CacheError(
                    f"{shown(entry.url)}: no room for {size} bytes in {self.folder}, other downloads take up "
                    f"the {self.max_bytes} allowed: raise data.stream.cache_gb"
                )
            waited = waited + 0.1 if free == before else 0.0
            before = free
            time.sleep(0.1)

    def _make_room(self, own: _Entry, size: int) -> int:
        """Delete the oldest files until `size` bytes are free, if they can be; returns how many are."""
        used = self._scan(own)
        free = self.max_bytes - sum(file_bytes for _, file_bytes, _ in used)
        for _, file_bytes, name in sorted(used):
            if free >= size:
                break
            if self._evict(name, own):
                free += file_bytes
        return free

    def _scan(self, own: _Entry) -> list[tuple[int, int, str]]:
        """Time of the last use, bytes and name of all files, complete or not, but our own part.

        Parts first: one that is finished meanwhile counts twice, not never.
        """
        files = []
        for folder in ("parts", "files"):
            for item in os.scandir(self.folder / folder):
                name, reserved = item.name, None
                if folder == "parts":
                    name = item.name.removesuffix(".part")
                    if name in (item.name, own.name):  # A note, or our own.
                        continue
                    reserved = read_json(_Entry(self.folder, name).part_note).get("reserved")
                with suppress(FileNotFoundError):
                    status = item.stat()
                    size = max(status.st_size, reserved if isinstance(reserved, int) else 0)
                    files.append((status.st_mtime_ns, size, name))
        return files

    def _evict(self, name: str, own: _Entry) -> bool:
        """Delete a file, unless a process is at work on it."""
        from filelock import FileLock, Timeout

        if name == own.name:  # The version before; its lock is ours already.
            own.file.unlink(missing_ok=True)
            return True
        entry = _Entry(self.folder, name)
        try:
            with FileLock(entry.lock, timeout=0):
                self._delete(entry)
        except Timeout:
            return False
        log.debug("deleted %s from the cache", name)
        return True


class _Entry:
    """Where a file of the cache, and what belongs to it, lies."""

    def __init__(self, folder: Path, name: str, url: str = "") -> None:
        self.name, self.url = name, url
        self.file = folder / "files" / name
        self.note = folder / "notes" / name
        self.part = folder / "parts" / f"{name}.part"
        self.part_note = folder / "parts" / f"{name}.note"
        self.lock = folder / "locks" / name


def name_of(url: str) -> str:
    """Name of a URL's file in a cache."""
    path = urlsplit(url).path if url.startswith(("http://", "https://")) else url
    tail = re.sub(r"[^A-Za-z0-9._-]", "_", path.rstrip("/").rpartition("/")[2])[-80:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:32]}-{tail}"


def _touch(file: Path) -> bool:
    """Note that a file is used now; False where it is gone."""
    try:
        os.utime(file)
    except FileNotFoundError:
        return False
    except OSError:
        pass  # It belongs to another user, who keeps its time then.
    return True
