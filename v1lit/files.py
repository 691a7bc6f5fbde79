"""Files and folders: written whole or not at all, and told apart by their content."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from uuid import uuid4

OLD = "old"
"""The token of what a newer one is taking the place of."""


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def beside(path: Path, token: str | None = None) -> Path:
    """The hidden name beside `path` of what is unfinished there: with this token, or a new one."""
    return path.with_name(f".{path.name}.{token or uuid4().hex[:8]}.tmp")


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A free path beside `path`; the file or folder that is made there gets the name `path` at the end.

    After an error or Ctrl-C it is removed instead. A file replaces an older one, a folder only an empty one.
    A process that is killed leaves it behind as `.NAME.TOKEN.tmp`, for `remove_leftovers`.
    """
    unfinished = beside(path)
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        remove(unfinished)


def put_in_place(unfinished: Path, path: Path) -> None:
    """Give a file or folder its name, in place of a file or a full folder that has it, and on the disk.

    A folder cannot be replaced at once: the older one is called `beside(path, OLD)` for that moment.
    """
    if path.is_dir() or (unfinished.is_dir() and os.path.lexists(path)):
        old = beside(path, OLD)
        remove(old)
        os.replace(path, old)
        os.replace(unfinished, path)
        remove(old)
    else:
        os.replace(unfinished, path)
    to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_path(path: Path) -> Path:
    """`path`, or the first of `NAME-2`, `NAME-3`, ... that is free; its suffix stays."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(place for place in chain([path], numbered) if not place.exists())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file aside, then give it its name. Text becomes UTF-8."""
    with aside(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, as far as possible; it may be missing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what killed processes left aside in a folder, for one name or all; no other may be writing."""
    for unfinished in folder.glob("*.tmp"):
        if not name or unfinished.name.startswith(f".{name}."):
            remove(unfinished)
