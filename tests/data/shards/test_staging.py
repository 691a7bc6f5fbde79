"""A folder made in units resumes with those that are whole, and is complete when its index is there."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from v1lit.data.example import Example, Message
from v1lit.data.shards import ShardInfo, ShardWriter, list_shards, verify_shard
from v1lit.data.shards.staging import StagedFolder

pytestmark = pytest.mark.dependencies


@pytest.fixture
def staged(tmp_path: Path) -> StagedFolder:
    folder = StagedFolder(tmp_path / "out", ".made", verify_shard)
    folder.begin('{"seed": 3}')
    return folder


def example(id: str) -> Example:
    return Example(id=id, messages=(Message("user", "?"), Message("assistant", "!")))


def write_unit(staged: StagedFolder, name: str) -> ShardInfo:
    with staged.unit(name) as unfinished:
        with ShardWriter(unfinished) as writer:
            writer.write(example(name))
        (unfinished / "record.json").write_text(json.dumps({"shards": [asdict(writer.shards[0])]}))
    return writer.shards[0]


def test_a_unit_is_done_when_all_of_it_is_written_and_undamaged(staged: StagedFolder) -> None:
    assert not staged.is_done("a")
    with staged.unit("a") as unfinished:
        unfinished.mkdir()
        assert not staged.is_done("a")
    assert not staged.is_done("a")  # There is no record.
    shard = write_unit(staged, "a")
    assert staged.is_done("a")
    (staged.path / "a" / shard.file).write_bytes(b"damaged")
    assert not staged.is_done("a")
    write_unit(staged, "a")
    assert staged.is_done("a")


def test_it_begins_and_begins_again_without_what_a_kill_has_left(staged: StagedFolder) -> None:
    write_unit(staged, "a")
    for name in (".b.0123abcd.tmp", "b.4711.tmp"):  # The second is named as older versions did.
        (staged.path / name).mkdir()
    assert (staged.plan, staged.final) == ({"seed": 3}, None)
    staged.begin('{"seed": 3}')
    assert sorted(path.name for path in staged.path.iterdir()) == ["a", "plan.json"]


def publish(staged: StagedFolder, shard: ShardInfo) -> dict[str, Any]:
    moves = [(f"{unit}/{shard.file}", replace(shard, file=f"shard-{unit}.tar")) for unit in "ab"]
    return staged.publish(moves, seed=3)


def test_publishing_goes_on_where_it_was_stopped_and_finds_out_what_is_missing(staged: StagedFolder) -> None:
    shard = write_unit(staged, "a")
    with pytest.raises(ValueError, match=r"shard-b\.tar is missing or damaged: delete .*out and start again"):
        publish(staged, shard)
    assert (staged.out / "shard-a.tar").is_file()
    assert not (staged.out / "index.json").exists()
    with staged.unit("b") as unfinished, ShardWriter(unfinished) as writer:
        writer.write(example("a"))
    assert publish(staged, shard)["seed"] == 3
    staged.discard()
    assert [info.file for info in list_shards(staged.out)] == ["shard-a.tar", "shard-b.tar"]
    assert all(verify_shard(staged.out, info) for info in list_shards(staged.out))
    assert not staged.path.exists()
