"""`index_shards`: an index for shards that v1lit did not write. They are read, never changed."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from v1lit.data.errors import ShardError
from v1lit.data.remote import expand, is_remote, join, may_be_folder
from v1lit.data.shards.compressed import hint_of_names
from v1lit.data.shards.index import (
    INDEX_NAME,
    ShardInfo,
    is_plain_name,
    read_index,
    shard_location,
    sidecar_name,
    write_index,
)
from v1lit.data.shards.index_one import IndexTask, index_one
from v1lit.files import write_atomically
from v1lit.paths import expand_path
from v1lit.processes import count_workers, ordered, progress_bar

MAX_LISTED = 100
"""Problems that are listed; all are counted."""
SCRATCH = ".fetched"
_OURS = ("schema_version", "examples", "images", "regions", "shards", "problems", "location")
T = TypeVar("T")


def index_shards(
    location: str, out: str | None = None, workers: int | None = None, progress: bool = False
) -> dict[str, Any]:
    """Make the sidecars and the `index.json` of shards that are there, so that they are read like our own.

    Examples that are not valid are counted too, so that reading can skip and report them. Of a damaged shard,
    the examples before the damage are indexed. Called again, it reads only shards that are new or changed.

    Args:
        location: a folder of .tar files; or a tar file or pattern, local or a URL.
        out: folder for the index. Without it, the index goes into the folder of the shards, which must be a
            local one of which `location` names all shards.
        workers: processes, one per core by default.
        progress: whether to show a progress bar.

    Returns:
        The content of index.json, and "problems" (kind -> how many) and "bad" (the first 100 of them, each
        with shard, key, kind and reason), and "unusable" (how many examples cannot be read).

    Raises ValueError where there are no shards or no example in any of them, and where `out` is needed or
    holds another index; ShardError where a shard cannot be fetched or opened.
    """
    location, out = expand_path(location), None if out is None else expand_path(out)
    folder, files = _choose(location, out)
    more: dict[str, Any] = {} if is_plain_name(files[0]) else {"location": _full(location)}
    old = _old_index(folder, more.get("location"))
    scratch = folder / SCRATCH
    tasks = [
        IndexTask(file, shard_location(folder, file), folder / sidecar_name(file), scratch) for file in files
    ]
    try:
        infos, problems, bad, unusable = _run(tasks, workers, progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not any(info.examples for info in infos):
        why = f"; the first problem is in {bad[0]['shard']}: {bad[0]['reason']}" if bad else ""
        raise ValueError(f"{location}: there are no examples in {len(infos)} shards{why}")
    if old is not None and list(old["shards"]) == infos:  # Where the data comes from is still true.
        more |= {name: value for name, value in old.items() if name not in _OURS}
    if problems:
        more["problems"] = problems
    return {**write_index(folder, infos, **more), "problems": problems, "bad": bad, "unusable": unusable}


# --- which shards, and where the index goes ---


def _choose(location: str, out: str | None) -> tuple[Path, list[str]]:
    """Folder of the index, and the shards as the index calls them."""
    if not (files := _list_files(location)):
        raise ValueError(f"{location} holds no shards (.tar files){hint_of_names(location)}")
    beside = _folder_of_all(files)
    if beside is not None and (out is None or Path(out).resolve() == beside.resolve()):
        names = [os.path.basename(file) for file in files]
        if odd := [name for name in names if not is_plain_name(name)]:
            raise ValueError(f"{beside} holds a shard with an unusable name, {odd[0]!r}: rename it")
        return beside, names
    if out is None:
        raise ValueError(
            f"{location} is not a local folder with all its shards: give a folder for the index with --out"
        )
    return Path(out), [_full(file) for file in files]


def _list_files(location: str) -> list[str]:
    if not may_be_folder(location):
        return expand(location)
    return expand(join(location, "*.tar")) if is_remote(location) else _tars(Path(location))


def _tars(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.tar") if not path.name.startswith("."))


def _folder_of_all(files: list[str]) -> Path | None:
    """The local folder of which these are all the shards, None where there is no such folder."""
    folder = Path(os.path.dirname(files[0]))
    return folder if {str(Path(file)) for file in files} == set(_tars(folder)) else None


def _full(location: str) -> str:
    return location if is_remote(location) else os.path.abspath(location)


def _old_index(folder: Path, location: str | None) -> dict[str, Any] | None:
    """The index that is there, None where nobody can read one. Makes the folder.

    Raises ValueError where it is the index of other shards.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = read_index(folder)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be used ({error.strerror})") from error
    except ValueError as error:
        if isinstance(error, ShardError) and error.kind == "unreachable":
            unread = f"its {INDEX_NAME} {error.reason}"
            raise ValueError(f"the folder {folder} cannot be used: {unread}") from error
        return None
    if (other := old.get("location")) != location:
        advice = f"choose another folder, or delete its {INDEX_NAME}"
        raise ValueError(f"{folder} holds the index of {other or 'the shards in it'}: {advice}")
    return old


# --- running ---


def _run(
    tasks: list[IndexTask], workers: int | None, progress: bool
) -> tuple[list[ShardInfo], dict[str, int], list[dict[str, str | None]], int]:
    """Index the shards: what is in them, kinds of problems, the first ones, and how many examples are lost.

    Only this process writes sidecars: ending the others leaves nothing behind.
    """
    infos: list[ShardInfo] = []
    problems: Counter[str] = Counter()
    bad: list[dict[str, str | None]] = []
    unusable = 0
    results = ordered(index_one, tasks, count_workers(workers, len(tasks)))
    with closing(results), progress_bar("indexing", len(tasks), progress) as advance:
        for task, shard in zip(tasks, results, strict=True):
            advance(shard.info.examples)
            if shard.sidecar is not None:
                _write(task.sidecar, shard.sidecar)
            infos.append(shard.info)
            problems.update(shard.problems)
            unusable += shard.unusable
            for key, kind, reason in shard.bad[: MAX_LISTED - len(bad)]:
                bad.append({"shard": task.location, "key": key, "kind": kind, "reason": reason})
    return infos, dict(problems), bad, unusable


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}): give another folder for the index with --out"
        ) from error
