"""What goes wrong under the hands of the tools for whole folders is said with the file and a way out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.shard_cases import write

from v1lit.data.errors import ShardError
from v1lit.data.remote import RemoteError
from v1lit.data.tools import find
from v1lit.data.tools.content import index_of, scan_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "shards", ["a", "b"])


def test_a_shard_that_cannot_be_read_any_more_has_no_checksums(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next(folder.glob("*.tar"))
    scan = scan_file(path)

    def refuse(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", refuse)
    with pytest.raises(ShardError, match="Input/output error") as caught:
        index_of(path, scan)
    assert caught.value.kind == "unreachable"


def test_a_remote_folder_without_tars_has_none_and_one_out_of_reach_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(pattern: str) -> list[str]:
        raise ValueError("nothing matches")

    def out_of_reach(pattern: str) -> list[str]:
        raise RemoteError(pattern, 3, "503", "unreachable", 503)

    monkeypatch.setattr(find, "expand", nothing)
    assert find._tars("s3://bucket/folder") == []
    monkeypatch.setattr(find, "expand", out_of_reach)
    with pytest.raises(ShardError, match="503"):
        find._tars("s3://bucket/folder")
