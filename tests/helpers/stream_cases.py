"""Tar files that are read as a stream: plain, packed, and as commands."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from helpers.shard_cases import jpeg, members_of, tar
from v1lit.data.config import SourceConfig


def archives(folder: Path, counts: Sequence[int], suffix: str = ".tar") -> list[Path]:
    """Tar files with these numbers of our examples, from `e000` on."""
    paths, first = [], 0
    for number, count in enumerate(counts):
        members = [one for n in range(first, first + count) for one in members_of(f"e{n:03}")]
        path = tar(folder / f"s{number}.tar", members)
        if suffix == ".tar.gz":
            packed = path.with_suffix(".tar.gz")
            packed.write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
            path = packed
        paths.append(path)
        first += count
    return paths


def source(path: object, **options: object) -> SourceConfig:
    """A stream."""
    return SourceConfig("webdataset", path=str(path), options=options)


def sample(key: str, record: object = None, **members: bytes | str) -> list[tuple[str, bytes]]:
    """Members of a sample that is not ours, with an image of 40 x 32 pixels."""
    found: dict[str, bytes] = {"jpg": jpeg(3)}
    if record is not None:
        found["json"] = json.dumps(record).encode()
    for kind, content in members.items():
        found[kind] = content.encode() if isinstance(content, str) else content
    return [(f"{key}.{kind}", content) for kind, content in found.items()]


def tar_bytes(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
