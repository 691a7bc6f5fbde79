"""What a disk refuses, and what is too large to be true, is told with the name of the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.shard_cases import make, write

from v1lit.data.config import StreamConfig
from v1lit.data.errors import ShardError
from v1lit.data.example import ExampleRef
from v1lit.data.remote import RemoteError
from v1lit.data.shards import INDEX_NAME, ShardWriter, index, member, read_index, sidecar
from v1lit.data.shards.catalog import Catalog
from v1lit.data.shards.examples import Examples
from v1lit.data.shards.make_index import index_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "shards", ["a", "b"])


@pytest.fixture
def broken_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    return lambda: monkeypatch.setattr(os, "pread", refuse)


def test_an_error_of_the_disk_is_that_of_the_example_that_was_read(
    folder: Path, broken_disk: Callable[[], None]
) -> None:
    shard = Catalog(folder).open(0)
    broken_disk()
    with pytest.raises(ShardError, match="Input/output error") as caught:
        shard.example(1)
    assert caught.value.kind == "unreachable"
    assert str(folder) in caught.value.shard


def test_an_index_of_a_disk_that_cannot_be_read_is_not_made(
    folder: Path, broken_disk: Callable[[], None]
) -> None:
    (folder / INDEX_NAME).unlink()
    broken_disk()
    with pytest.raises(ShardError, match="Input/output error"):
        index_shards(folder, workers=1, progress=False)


def test_an_index_needs_a_folder_that_can_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"file.* cannot be used \("):
        index_shards(folder, out=str(tmp_path / "file"), workers=1, progress=False)


def test_an_index_beside_a_shard_needs_a_free_name(folder: Path) -> None:
    for path in folder.glob("*.index.safetensors"):
        path.unlink()
        (path / "inside").mkdir(parents=True)
    (folder / INDEX_NAME).unlink()
    with pytest.raises(ValueError, match=r"cannot be written .*give another folder"):
        index_shards(folder, workers=1, progress=False)


def test_a_shard_whose_name_no_index_can_hold_is_to_be_renamed(folder: Path) -> None:
    shard = next(folder.glob("*.tar"))
    shard.rename(folder / "a\\b.tar")
    with pytest.raises(ValueError, match=r"unusable name.*rename it"):
        index_shards(folder, workers=1, progress=False)


def test_files_that_are_too_large_to_be_an_index_are_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecar, "MAX_SIDECAR_BYTES", 10)
    with pytest.raises(ShardError, match="more than 10 bytes"):
        Catalog(folder).open(0)
    monkeypatch.setattr(index, "MAX_INDEX_BYTES", 10)
    with pytest.raises(ValueError, match="larger than the 10 bytes"):
        read_index(folder)


def test_an_example_that_no_reader_would_take_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "MAX_EXAMPLE_BYTES", 1000)
    with pytest.raises(ValueError, match="the limit is 1000"), ShardWriter(tmp_path / "out") as writer:
        writer.write(make("a"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_examples": 0}, "must be at least 1, given 0"),
        ({"max_bytes": 0}, "must be at least 1"),
        ({"unique": "none"}, "'none'"),
    ],
)
def test_a_writer_refuses_limits_that_no_shard_could_keep(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ShardWriter(tmp_path, **options)


def test_a_sidecar_that_cannot_be_fetched_is_an_error_of_its_shard(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog(folder, StreamConfig())
    shard = catalog.files[0]
    catalog._shards[0] = catalog._shards[0]._replace(folder="https://host/shards")

    class Cache:
        def fetch(self, url: str) -> Path:
            raise RemoteError(url, 3, "503", "unreachable", 503)

    monkeypatch.setitem(catalog.__dict__, "cache", Cache())
    with pytest.raises(RemoteError, match=r"503 \(of .*\.index\.safetensors\)") as caught:
        catalog.index(0)
    assert caught.value.shard == shard


def test_the_key_of_an_example_that_cannot_be_read_is_not_known(folder: Path) -> None:
    examples = Examples([Catalog(folder)])
    assert examples.key(ExampleRef(0, 0, 0, 1)) == "b"
    examples = Examples([Catalog(folder)])
    next(folder.glob("*.tar")).unlink()
    assert examples.key(ExampleRef(0, 0, 0, 1)) is None
