"""The shards that locations name, with what their indexes say of them; for tools that trust no index."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from v1lit.data.errors import ShardError
from v1lit.data.remote import exists, expand, is_open, is_remote, join, may_be_folder, parent
from v1lit.data.shards import INDEX_NAME, ShardInfo, read_index, shard_location
from v1lit.data.shards.compressed import hint_of_names
from v1lit.data.shards.index import REINDEX
from v1lit.paths import expand_path


@dataclass(frozen=True)
class Finding:
    """Something that is wrong."""

    shard: str
    """Location of the shard, or of the folder."""
    key: str | None
    """Name of the example, None where it is about the whole shard."""
    kind: str
    """See `v1lit.data.tools.check.FINDING_KINDS`."""
    reason: str
    """What is wrong and, where there is a way, what to do."""

    @classmethod
    def of(cls, error: ShardError) -> Finding:
        """What an error says."""
        return cls(error.shard, error.key, error.kind, error.reason)

    def as_error(self) -> ShardError:
        """The same as an exception."""
        return ShardError(self.shard, self.key, self.reason, self.kind)

    def __str__(self) -> str:
        return f"{self.shard}{f', example {self.key!r}' if self.key is not None else ''}: {self.reason}"


@dataclass(frozen=True)
class ShardFile:
    """A shard to look at. `info` and `index` (folder of the index that names it): None without an index."""

    location: str
    info: ShardInfo | None = None
    index: str | None = None
    source: str = ""
    """The location, of those that were given, by which it was found first."""


@dataclass
class ShardList:
    """Shards in their listed order, each once; what is wrong with the lists; locations without an index."""

    shards: list[ShardFile] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    without_index: list[str] = field(default_factory=list)


def find_shards(locations: Sequence[str]) -> ShardList:
    """The shards of some locations: folders, tar files or patterns, local or URLs.

    Raises ValueError without locations, or for one that names no shards.
    """
    if not locations:
        raise ValueError("no location is given; give folders with shards, tar files or patterns")
    shard_list = ShardList()
    for location in map(expand_path, locations):
        has_index = may_be_folder(location) and exists(join(location, INDEX_NAME))
        found = (_of_folder if has_index else _of_files)(location, shard_list)
        shard_list.shards += [replace(shard, source=location) for shard in found]
    shard_list.shards = list(
        {_identity(shard.location): shard for shard in reversed(shard_list.shards)}.values()
    )[::-1]
    return shard_list


def _of_folder(folder: str, shard_list: ShardList) -> Iterator[ShardFile]:
    """The shards of a folder with an index, and those that lie beside them."""
    infos = _infos(folder, shard_list)
    yield from infos.values()
    if any(is_remote(shard.location) != is_remote(folder) for shard in infos.values()):
        return  # An index of files elsewhere.
    for path in _tars(folder):
        if _identity(path) not in infos:
            yield _as_listed(path, infos, shard_list)


def _of_files(location: str, shard_list: ShardList) -> Iterator[ShardFile]:
    """The shards of a pattern, a file, or a folder without an index."""
    is_folder = may_be_folder(location)
    paths = _tars(location) if is_folder else expand(location)
    if not paths:
        raise ValueError(f"{location} holds no shards (.tar files){_hint(location)}")
    infos: dict[str, dict[str, ShardFile]] = {}
    for path in paths:
        folder = parent(path)
        if folder not in infos:
            has_index = is_open(join(folder, INDEX_NAME))
            infos[folder] = _infos(folder, shard_list) if has_index else {}
            if not has_index:
                shard_list.without_index.append(folder)
        yield _as_listed(path, infos[folder], shard_list)


def _infos(folder: str, shard_list: ShardList) -> dict[str, ShardFile]:
    """The shards of an index by identity; none where the index cannot be read, which is a finding."""
    try:
        table = read_index(folder)["shards"]
    except ValueError as error:
        shard_list.findings.append(Finding(join(folder, INDEX_NAME), None, "index", str(error)))
        return {}
    shards = (ShardFile(shard_location(folder, info.file), info, folder) for info in table)
    return {_identity(shard.location): shard for shard in shards}


def _as_listed(path: str, infos: dict[str, ShardFile], shard_list: ShardList) -> ShardFile:
    """A shard as the index beside it names it; a finding where there is one that does not."""
    identity = _identity(path)
    if infos and identity not in infos:
        reason = f"{INDEX_NAME} beside it does not name it, so nobody reads it; {REINDEX}, with this shard"
        shard_list.findings.append(Finding(path, None, "unlisted", reason))
    return infos.get(identity, ShardFile(path))


def _tars(folder: str) -> list[str]:
    """Tar files in a folder; none where the folder cannot be listed, as over http."""
    if not is_remote(folder):
        return [os.path.join(folder, path.name) for path in sorted(Path(folder).glob("*.tar"))]
    if folder.startswith(("http://", "https://")):
        return []
    try:
        return expand(join(folder, "*.tar"))
    except ShardError:
        raise
    except ValueError:  # Nothing matches.
        return []


def _hint(location: str) -> str:
    if is_remote(location):
        return "; give a pattern such as FOLDER/shard-{000..099}.tar where a folder cannot be listed"
    if compressed := hint_of_names(location):
        return compressed
    splits = sorted(path.parent.name for path in Path(location).glob(f"*/{INDEX_NAME}"))
    return f"; {' and '.join(splits)} inside of it hold some" if splits else ""


def _identity(location: str) -> str:
    """The same for two names of one file."""
    return location if is_remote(location) else str(Path(location).resolve())
