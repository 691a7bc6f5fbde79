"""What the local disk refuses while a file comes in is a `CacheError` that names the place."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from v1lit.data.remote import CacheError
from v1lit.data.remote.cache import ShardCache, _touch, name_of
from v1lit.data.remote.download import PartialFile, write_json


class Refusing(io.BytesIO):
    """A file on a disk that takes nothing any more."""

    def write(self, data: object) -> int:
        raise OSError(28, "No space left on device")

    def truncate(self, size: int | None = None) -> int:
        raise OSError(30, "Read-only file system")


@pytest.fixture
def part(tmp_path: Path) -> PartialFile:
    return PartialFile(tmp_path / "a.part", tmp_path / "a.json")


def test_a_folder_that_is_not_there_cannot_hold_a_part(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="missing"):
        PartialFile(tmp_path / "missing/a.part", tmp_path / "missing/a.json")


def test_a_full_disk_is_said_and_the_part_makes_room(part: PartialFile, tmp_path: Path) -> None:
    def fill() -> None:
        with part:
            part._file = Refusing()
            part.write(b"abc")

    with pytest.raises(CacheError, match=f"the disk of {tmp_path} is full"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_begin_again_is_said(part: PartialFile) -> None:
    part._file = Refusing()
    with pytest.raises(CacheError, match="Read-only"):
        part.restart("tag")


def test_a_name_that_cannot_be_given_is_said(part: PartialFile, tmp_path: Path) -> None:
    (tmp_path / "taken/inside").mkdir(parents=True)
    part.write(b"abc")
    with pytest.raises(CacheError):
        part.become(tmp_path / "taken")
    assert (tmp_path / "a.part").read_bytes() == b"abc"


def test_a_note_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="missing"):
        write_json(tmp_path / "missing/a.json", {})


def test_a_copy_that_cannot_be_looked_at_cannot_be_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path / "cache", 10**6)
    (cache.folder / "files" / name_of("https://host/a.tar")).mkdir()  # a folder cannot be read as a file
    with pytest.raises(CacheError, match="Is a directory"):
        cache.discard("https://host/a.tar", "0" * 64)


def test_a_file_of_another_user_keeps_its_time_and_counts_as_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    assert not _touch(tmp_path / "gone")
    monkeypatch.setattr(os, "utime", refuse)
    assert _touch(tmp_path)
