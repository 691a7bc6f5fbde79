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


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A free path beside `path`; the file or folder that is made there gets the name `path` at the end.

    After an error or Ctrl-C it is removed instead. A file replaces an older one, a folder only an empty one.
    A process that is killed leaves it behind as `.NAME.TOKEN.tmp`, for `remove_leftovers`.
    """
    unfinished = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        remove(unfinished)


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
