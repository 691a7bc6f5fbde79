"""Compressed archives, in which no example can be found without reading all that stands before it."""

from __future__ import annotations

import re
from pathlib import Path

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
"""How compressed files begin."""
_NAME = re.compile(r".+\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz)", re.IGNORECASE)
_WHY = "in which examples cannot be found"


def explain_content(start: bytes) -> str | None:
    """What a file is that begins with these bytes, and how it becomes a tar file; None if it may be one."""
    for magic, program in _MAGIC.items():
        if start.startswith(magic):
            how = "pack its files with tar" if program == "zip" else f"{program} -dc FILE > NEW.tar"
            return f"but compressed with {program}, {_WHY}: {how}"
    return None


def hint_of_names(*folders: str | Path) -> str:
    """`; ...` about compressed archives in local folders, or about one that is named itself; or nothing."""
    for folder in map(Path, folders):
        files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
        for file in files:
            if _NAME.fullmatch(file.name) and file.is_file():
                return f"; {file} is compressed, {_WHY}: uncompress it, as with `gzip -dc FILE > NEW.tar`"
    return ""
