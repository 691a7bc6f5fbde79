"""Small examples and shards for tests of what reads and writes them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from helpers.pictures import encoded
from v1lit.data.example import Example, Message
from v1lit.data.images import read_header
from v1lit.data.shards import Shard, ShardIndex, ShardWriter, write_index
from v1lit.data.shards.file import RandomAccess
from v1lit.data.shards.scan import checksums, scan_headers
from v1lit.grounding.region import Region


def jpeg(shade: int) -> bytes:
    """A JPEG file of 40 x 32 pixels."""
    return encoded((40, 32), (shade % 256, 60, 90), "JPEG")


def make(id: str, images: int = 1) -> Example:
    return Example(
        id=id,
        images=tuple(read_header(jpeg(40 * number)) for number in range(images)),
        messages=(
            Message("user", "<image>\n" * images + "Where?"),
            Message(
                "assistant", 'detect(query="it", objects=["<obj1><|region_1|>"])' if images else "Nowhere."
            ),
        ),
        regions={"<|region_1|>": Region.from_box((1, 2, 30, 20))} if images else {},
    )


def write(folder: Path, ids: list[str], **options: Any) -> Path:
    """A complete folder of shards."""
    with ShardWriter(folder, **options) as writer:
        for id in ids:
            writer.write(make(id))
    write_index(folder, writer.shards)
    return folder


def read_all(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """All examples of a shard in order, as (key, member kind -> content)."""
    with Shard(path) as shard:
        for index in range(len(shard)):
            yield shard.key(index), shard.members(index)


def index_of(path: Path) -> ShardIndex:
    """The index of a shard, from its bytes alone."""
    with RandomAccess(path) as file:
        offsets = scan_headers(file.read, file.size).offsets
        return ShardIndex(np.array(offsets), checksums(file.read, offsets, file.size)[0])


def tar(path: Path, members: list[tuple[str, bytes]], **attributes: object) -> Path:
    """A tar file with any members; the attributes are set on all of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            file.addfile(info, io.BytesIO(data))
    return path


def members_of(id: str) -> list[tuple[str, bytes]]:
    example = make(id)
    return [(f"{example.key}.{kind}", data) for kind, data in example.to_members().items()]
