"""Shards: plain tar files in WebDataset layout, written reproducibly and read with suspicion.

    <folder>/shard-000000.tar     members <key>.json, <key>.jpg (or <key>.0.jpg, <key>.1.png for several
    images), ... <folder>/index.json           what is in the folder, with checksums; written last

Any WebDataset reader opens them. This one never decodes by extension (WebDataset's own decoders unpickle .pyd
and .pth members): it returns bytes of known kinds and refuses everything else.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from v1lit.data.example import Example
from v1lit.data.images import EXTENSIONS

SCHEMA_VERSION = 1
INDEX_NAME = "index.json"
MAX_JSON_BYTES = 16 * 2**20
MAX_IMAGE_BYTES = 256 * 2**20
_MEMBER_NAME = re.compile(r"([^./\\\x00]+)\.((?:\d+\.)?([A-Za-z0-9]+))")


class ShardError(ValueError):
    """A shard, or one example in it, that cannot be used; the text names both.

    Attributes:
        shard: path of the shard.
        key: name of the example, None where the whole shard is unusable.
        reason: a sentence that says what is wrong.
    """

    def __init__(self, shard: str | Path, key: str | None, reason: str) -> None:
        super().__init__(f"shard {shard}{f', example {key!r}' if key is not None else ''}: {reason}")
        self.shard, self.key, self.reason = str(shard), key, reason

    def __reduce__(self) -> tuple[type[ShardError], tuple[str, str | None, str]]:
        return type(self), (self.shard, self.key, self.reason)


@dataclass(frozen=True)
class ShardInfo:
    """One line of the index: file name, numbers of examples, images and regions, size and SHA-256."""

    file: str
    examples: int
    images: int
    regions: int
    bytes: int
    sha256: str


# --- writing ---


class ShardWriter:
    """Write examples to `<folder>/<prefix>-000000.tar`, `-000001.tar`, ...

    The files depend on the examples alone (no times, no user names). A shard gets its name when it is
    complete; inside of a `with` block that ends in an error the unfinished one is removed.

    Args:
        folder: made if missing; must not hold shards of that prefix yet.
        max_examples: a new shard starts after so many examples, and
        max_bytes: before a shard would grow beyond so many bytes.
    """

    def __init__(
        self,
        folder: str | Path,
        prefix: str = "shard",
        *,
        max_examples: int = 1000,
        max_bytes: int = 512 * 2**20,
    ) -> None:
        if max_examples < 1 or max_bytes < 1:
            raise ValueError(
                f"max_examples and max_bytes must be at least 1, given {max_examples} and {max_bytes}"
            )
        self.folder, self.prefix = Path(folder), prefix
        self.max_examples, self.max_bytes = max_examples, max_bytes
        self.shards: list[ShardInfo] = []
        self._keys: set[str] = set()
        self._open: _OpenShard | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        if present := sorted(path.name for path in self.folder.glob(f"{prefix}-*.tar")):
            raise ValueError(f"{self.folder} already holds shards ({present[0]}, ...): choose another folder")

    def write(self, example: Example) -> None:
        """Append an example.

        Raises:
            ValueError: an id that this writer has written before, or a member larger than a reader would
                accept.
        """
        key = example.key
        if key in self._keys:
            raise ValueError(f"the id {example.id!r} was written before")
        members = [_tar_member(f"{key}.{kind}", data) for kind, data in example.to_members().items()]
        if self._open is not None and not self._open.fits(members, self.max_examples, self.max_bytes):
            self._finish_shard()
        if self._open is None:
            self._open = _OpenShard(self.folder / f"{self.prefix}-{len(self.shards):06d}.tar")
        self._open.add(members, images=len(example.images), regions=len(example.regions))
        self._keys.add(key)

    def close(self) -> list[ShardInfo]:
        """Finish the last shard; returns all of them."""
        self._finish_shard()
        return self.shards

    def _finish_shard(self) -> None:
        if self._open is not None:
            self.shards.append(self._open.finish())
            self._open = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._open is not None:
            self._open.abandon()
            self._open = None


class _OpenShard:
    """A shard under way, in a file beside its later place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.tar = tarfile.open(self.aside, "w:", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.examples = self.images = self.regions = self.bytes = 0

    def fits(self, members: list[tuple[tarfile.TarInfo, bytes]], max_examples: int, max_bytes: int) -> bool:
        return self.examples < max_examples and self.bytes + _size_in_tar(members) <= max_bytes

    def add(self, members: list[tuple[tarfile.TarInfo, bytes]], images: int, regions: int) -> None:
        for info, data in members:
            self.tar.addfile(info, io.BytesIO(data))
        self.examples += 1
        self.images += images
        self.regions += regions
        self.bytes += _size_in_tar(members)

    def finish(self) -> ShardInfo:
        self.tar.close()
        size, digest = self.aside.stat().st_size, sha256_of(self.aside)
        os.replace(self.aside, self.path)
        return ShardInfo(self.path.name, self.examples, self.images, self.regions, size, digest)

    def abandon(self) -> None:
        self.tar.close()
        self.aside.unlink(missing_ok=True)


def _tar_member(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    if len(data) > (limit := _size_limit(name)):
        raise ValueError(f"the member {name} has {len(data)} bytes, the limit is {limit}")
    info = tarfile.TarInfo(name)  # Defaults: time 0, user 0, no user name.
    info.size, info.mode = len(data), 0o644
    return info, data


def _size_limit(name: str) -> int:
    return MAX_JSON_BYTES if name.endswith(".json") else MAX_IMAGE_BYTES


def _size_in_tar(members: list[tuple[tarfile.TarInfo, bytes]]) -> int:
    return sum(512 + (len(data) + 511) // 512 * 512 for _, data in members)


# --- index ---


def write_index(folder: str | Path, shards: Iterable[ShardInfo], **more: Any) -> dict[str, Any]:
    """Write `index.json`, which makes the folder complete; returns its content. `more` is added as it is."""
    shards = list(shards)
    index: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "examples": sum(shard.examples for shard in shards),
        "images": sum(shard.images for shard in shards),
        "regions": sum(shard.regions for shard in shards),
        **more,
        "shards": [asdict(shard) for shard in shards],
    }
    write_atomically(Path(folder) / INDEX_NAME, json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    return index


def read_index(folder: str | Path) -> dict[str, Any]:
    """Read `index.json` of a folder of shards.

    Raises:
        ValueError: no index (the folder is missing or was never completed), or one that this version cannot
            read.
    """
    path = Path(folder) / INDEX_NAME
    if not path.is_file():
        what = "is incomplete or not a folder of shards" if Path(folder).is_dir() else "does not exist"
        raise ValueError(f"{folder} {what}: it has no {INDEX_NAME}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["schema_version"]
        shards = [ShardInfo(**shard) for shard in index["shards"]]
        names_are_plain = all(Path(shard.file).name == shard.file for shard in shards)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): make the folder again"
        ) from error
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version!r}, this version of v1lit reads {SCHEMA_VERSION}"
        )
    if not names_are_plain:
        raise ValueError(f"{path} names a shard outside of its folder")
    return index


def list_shards(folder: str | Path) -> list[ShardInfo]:
    """The shards that the index names, in order. ValueError as `read_index`, or where a file is missing."""
    shards = [ShardInfo(**shard) for shard in read_index(folder)["shards"]]
    for shard in shards:
        if not (Path(folder) / shard.file).is_file():
            raise ValueError(f"{folder}: {shard.file} is missing, though {INDEX_NAME} names it")
    return shards


def verify_shard(folder: str | Path, shard: ShardInfo) -> bool:
    """Whether the file is there and has the size and checksum that the index says."""
    path = Path(folder) / shard.file
    return path.is_file() and path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file aside, then give it its name."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8", newline="\n")
    os.replace(aside, path)


# --- reading ---


@dataclass
class _Entry:
    """Where an example lies in the file: kind -> (offset, size); `problem`: why it must not be read."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    problem: str | None = None


class Shard:
    """One shard, opened for reading in any order. Opening reads all tar headers, but no content.

    Usable as a context manager. `len(shard)` is the number of examples.

    Raises:
        ShardError: not an uncompressed tar file, damaged or cut off, or with members that belong to no
            example.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file: BinaryIO = open(path, "rb")  # noqa: SIM115
        except OSError as error:
            raise ShardError(path, None, f"cannot be opened ({error.strerror})") from error
        try:
            self._entries = _scan(self.path, self._file)
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def keys(self) -> list[str]:
        """Names of the examples, in order."""
        return [entry.key for entry in self._entries]

    def members(self, number: int) -> dict[str, bytes]:
        """Content of the members of one example, by kind ("json", "jpg", "0.jpg", ...).

        Raises:
            ShardError: a member of unknown kind, too large, or not a plain file.
        """
        entry = self._entries[number]
        if entry.problem:
            raise ShardError(self.path, entry.key, entry.problem)
        members = {}
        for kind, (offset, size) in entry.members.items():
            self._file.seek(offset)
            members[kind] = self._file.read(size)
            if len(members[kind]) != size:
                raise ShardError(self.path, entry.key, "the file was cut off while it was being read")
        return members

    def example(self, number: int) -> Example:
        """One example, checked.

        Raises:
            ShardError: as `members`, and where the members do not form a valid example.
        """
        key = self._entries[number].key
        members = self.members(number)
        try:
            return Example.from_members(key, members)
        except ValueError as error:
            raise ShardError(self.path, key, getattr(error, "reason", str(error))) from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def iter_shard(path: str | Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """All examples of a shard in order, as (key, member kind -> content). Raises as `Shard`."""
    with Shard(path) as shard:
        for number, key in enumerate(shard.keys):
            yield key, shard.members(number)


def _scan(path: Path, file: BinaryIO) -> list[_Entry]:
    entries: list[_Entry] = []
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.size < 0:  # The next header would be looked for further back, for ever.
                    raise ShardError(path, None, f"damaged: the member {info.name!r} has a negative size")
                key, kind, extension = _split_name(path, info)
                if not entries or entries[-1].key != key:
                    if key in seen:
                        raise ShardError(path, key, "occurs twice")
                    seen.add(key)
                    entries.append(_Entry(key))
                entry = entries[-1]
                entry.problem = entry.problem or _problem_of_member(info, entry, kind, extension)
                entry.members[kind] = (info.offset_data, info.size)
            end = tar.offset
    except (ShardError, MemoryError):
        raise
    except Exception as error:  # Damaged headers make tarfile raise many kinds.
        raise ShardError(path, None, f"not a complete, uncompressed tar file ({error})") from error
    _check_end(path, file, end)
    return entries


def _split_name(path: Path, info: tarfile.TarInfo) -> tuple[str, str, str]:
    """Name of a member -> (key, kind, extension): ("a", "0.jpg", "jpg")."""
    match = _MEMBER_NAME.fullmatch(info.name)
    if match is None:
        reason = f"the member {info.name!r} is not named KEY.json, KEY.jpg or KEY.0.jpg, with no folder"
        raise ShardError(path, None, reason)
    return match[1], match[2], match[3]


def _problem_of_member(info: tarfile.TarInfo, entry: _Entry, kind: str, extension: str) -> str | None:
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
        return f"the member {info.name} is a link, folder or special file, only plain files are read"
    if extension != "json" and extension not in EXTENSIONS:
        return f"the member {info.name} is of no known kind; read are json, {', '.join(EXTENSIONS)}"
    if kind in entry.members:
        return f"the member {info.name} occurs twice"
    if info.size > (limit := _size_limit(info.name)):
        return f"the member {info.name} has {info.size} bytes, the limit is {limit}"
    return None


def _check_end(path: Path, file: BinaryIO, end: int) -> None:
    """Behind the last member there must be zeros only, at least two blocks.

    tarfile takes a damaged header, or a file that stops between two members, for the end and says nothing.
    """
    file.seek(end)
    zeros = 0
    while block := file.read(2**16):
        if block.strip(b"\0"):
            raise ShardError(path, None, f"damaged: no readable tar header at byte {end}")
        zeros += len(block)
    if zeros < 1024:
        raise ShardError(path, None, "cut off: the end of the archive is missing")
