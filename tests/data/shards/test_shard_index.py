"""With its index an example is read by one access; an index that lies gives an error, nothing wrong."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.shard_cases import index_of, make, members_of, tar, write
from safetensors.numpy import save

from v1lit.data.errors import KINDS, DamageError, ShardError
from v1lit.data.shards import (
    MAX_EXAMPLE_BYTES,
    Shard,
    ShardIndex,
    ShardInfo,
    ShardWriter,
    list_shards,
    read_index,
    read_shard_index,
    read_sidecar,
    shard_location,
    sidecar_location,
    sidecar_name,
    verify_shard,
    write_index,
)
from v1lit.data.shards.file import RandomAccess
from v1lit.data.shards.scan import checksums

IDS = ["a", "b", "c", "x" * 200, "ü"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "shards", IDS)


@pytest.fixture
def tar_path(folder: Path) -> Path:
    return folder / "shard-000000.tar"


@pytest.fixture
def index(folder: Path) -> ShardIndex:
    return read_sidecar(folder, list_shards(folder)[0])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Offset and size of every access of a file."""
    asked: list[tuple[int, int]] = []
    original = RandomAccess.read

    def spy(self: RandomAccess, offset: int, size: int) -> bytes:
        asked.append((offset, size))
        return original(self, offset, size)

    monkeypatch.setattr(RandomAccess, "read", spy)
    return asked


def changed(index: ShardIndex, offsets: list[int] | None = None, data: bytes = b"") -> ShardIndex:
    """The index with other offsets, and checksums that fit to them where there are such bytes."""
    new = index.offsets.tolist() if offsets is None else offsets
    crc32 = [zlib.crc32(data[start:end]) for start, end in itertools.pairwise(new)]
    return ShardIndex(np.array(new, dtype=np.int64), np.array(crc32, dtype=np.uint32))


# --- a good index ---


def test_the_sidecar_says_where_examples_lie(tar_path: Path, index: ShardIndex) -> None:
    data = tar_path.read_bytes()
    with tarfile.open(tar_path) as file:
        starts = [info.offset for info in file if info.name.endswith(".json")]
    assert index.offsets[:-1].tolist() == starts
    ranges = list(itertools.pairwise(index.offsets))
    assert index.crc32.tolist() == [zlib.crc32(data[start:end]) for start, end in ranges]
    assert not data[index.offsets[-1] :].strip(b"\0")
    assert len(index) == len(IDS)


def test_an_example_is_read_by_one_access_and_opening_reads_nothing(
    tar_path: Path, index: ShardIndex, reads: list[tuple[int, int]]
) -> None:
    with Shard(tar_path, index=index) as shard:
        assert len(shard) == len(IDS)
        assert reads == []
        for number in (3, 0, 4):
            assert shard.example(number) == make(IDS[number])
    assert reads == [(index.offsets[n], index.offsets[n + 1] - index.offsets[n]) for n in (3, 0, 4)]


def test_reading_by_index_equals_reading_by_scanning(tar_path: Path, index: ShardIndex) -> None:
    with Shard(tar_path) as scanned, Shard(tar_path, index=index) as indexed:
        assert scanned.index is None
        assert indexed.keys == scanned.keys == [make(id).key for id in IDS]
        for number in range(len(IDS)):
            assert indexed.members(number) == scanned.members(number)
            assert indexed.raw(number) == scanned.raw(number)
    assert index_of(tar_path).to_bytes() == index.to_bytes()


def test_a_key_is_read_without_the_content(
    tar_path: Path, index: ShardIndex, reads: list[tuple[int, int]]
) -> None:
    with Shard(tar_path, index=index) as shard:
        assert [shard.key(number) for number in (1, 3)] == ["b", "x" * 200]
    assert sum(size for _, size in reads) < 4000


def test_threads_share_a_shard(tar_path: Path, index: ShardIndex) -> None:
    with Shard(tar_path, index=index) as shard, ThreadPoolExecutor(8) as pool:
        numbers = [number % len(IDS) for number in range(400)]
        assert list(pool.map(shard.example, numbers)) == [make(IDS[number]) for number in numbers]


def test_a_number_that_is_not_there_is_an_index_error(tar_path: Path, index: ShardIndex) -> None:
    for shard in (Shard(tar_path), Shard(tar_path, index=index)):
        for number in (-1, len(IDS)):
            with pytest.raises(IndexError, match="has 5 examples"):
                shard.example(number)


def test_errors_use_the_name_that_is_given(tar_path: Path, index: ShardIndex) -> None:
    url = "https://host/shard-000000.tar"
    tar_path.write_bytes(tar_path.read_bytes().replace(b"Where?", b"Where!"))
    with pytest.raises(ShardError, match=f"shard {url}, example 'a'"):
        Shard(tar_path, name=url, index=index).example(0)


def test_sidecar_files_are_reproducible_and_small(tmp_path: Path, folder: Path) -> None:
    again = write(tmp_path / "again", IDS)
    name = "shard-000000.index.safetensors"
    assert (folder / name).read_bytes() == (again / name).read_bytes()
    assert (folder / name).stat().st_size < 400 + 12 * len(IDS)


# --- copying examples ---


def test_raw_examples_make_the_same_shard(tmp_path: Path, tar_path: Path, index: ShardIndex) -> None:
    with ShardWriter(tmp_path / "copy") as writer, Shard(tar_path, index=index) as shard:
        keys = [writer.write_raw(shard.raw(number)) for number in range(len(shard))]
    write_index(tmp_path / "copy", writer.shards)
    assert keys == [make(id).key for id in IDS]
    for name in ("shard-000000.tar", "shard-000000.index.safetensors", "index.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tar_path.parent / name).read_bytes()


def test_members_make_the_same_shard(tmp_path: Path, tar_path: Path, index: ShardIndex) -> None:
    with ShardWriter(tmp_path / "copy") as writer, Shard(tar_path, index=index) as shard:
        for number, key in enumerate(shard.keys):
            writer.write_members(key, shard.members(number))
    assert (tmp_path / "copy" / tar_path.name).read_bytes() == tar_path.read_bytes()
    assert writer.shards == list_shards(tar_path.parent)


def test_writing_copies_keeps_the_checks(tmp_path: Path, tar_path: Path) -> None:
    with Shard(tar_path) as shard, ShardWriter(tmp_path / "copy") as writer:
        both = shard.raw(0) + shard.raw(1)
        with pytest.raises(ValueError, match="members of 'a' and of 'b'"):
            writer.write_raw(both)
        for data in (b"", bytes(512), shard.raw(0)[:-512], shard.raw(0) + bytes(512), b"x" * 1024):
            with pytest.raises(ValueError, match="not the bytes of one example"):
                writer.write_raw(data)
        writer.write_raw(shard.raw(0))
        with pytest.raises(ValueError, match="'a' was written before"):
            writer.write_members("a", shard.members(0))
        with pytest.raises(ValueError, match="no known kind"):
            writer.write_members("q", {"pyd": b""})
        with pytest.raises(ValueError, match="is not named"):
            writer.write_members("../q", {"json": b"{}"})
        with pytest.raises(ValueError, match="no tar header"):
            writer.write_members("q", {})
    assert [info.examples for info in writer.shards] == [1]


def test_an_id_may_come_again_in_another_shard_if_asked_for(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, max_examples=2, unique="shard") as writer:
        for id in ("a", "b", "a"):
            writer.write(make(id))
        with pytest.raises(ValueError, match="'a' was written before"):
            writer.write(make("a"))
    assert [info.examples for info in writer.shards] == [2, 1]


# --- an index that lies, or a shard that is not its own any more ---

Offsets = Callable[[list[int]], list[int]]
LIES: dict[str, tuple[Offsets, int]] = {
    "two examples in one": (lambda at: [at[0], *at[2:]], 0),
    "half an example": (lambda at: [at[0], at[0] + 512, *at[1:]], 0),
    "too late": (lambda at: [at[0], at[1] + 512, *at[2:]], 1),
    "too early": (lambda at: [at[0], at[1] - 512, *at[2:]], 0),
    "into the end of the archive": (lambda at: [*at, at[-1] + 1024], 5),
    "behind the file": (lambda at: [*at[:-1], at[-1] + 2**40], 4),
    "far behind the file": (lambda at: [*at, 2**62, 2**62 + 512], 6),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_gives_an_error(tar_path: Path, index: ShardIndex, lie: str) -> None:
    """Even where its checksums fit to its offsets."""
    change, number = LIES[lie]
    lying = changed(index, change(index.offsets.tolist()), tar_path.read_bytes())
    originals = [make(id) for id in IDS]
    with Shard(tar_path, index=lying) as shard:
        with pytest.raises(ShardError, match=rf"{tar_path.name}.*") as caught:
            shard.example(number)
        assert caught.value.kind in ("shard", "member", "invalid")
        for other in range(len(shard)):
            with contextlib.suppress(ShardError):
                assert shard.example(other) in originals


def test_the_index_of_another_shard_gives_a_checksum_error(tmp_path: Path, tar_path: Path) -> None:
    other = write(tmp_path / "other", ["p", "q", "r"])
    index = read_sidecar(other, list_shards(other)[0])
    with (
        Shard(tar_path, index=index) as shard,
        pytest.raises(
            ShardError, match=r"example 'a': .*checksum.* \(example number 0\).*data index"
        ) as caught,
    ):
        shard.example(0)
    assert (caught.value.key, caught.value.kind) == ("a", "checksum")


def test_only_the_changed_example_is_lost(tar_path: Path, index: ShardIndex) -> None:
    data = bytearray(tar_path.read_bytes())
    data[index.offsets[1] + 600] ^= 1
    tar_path.write_bytes(data)
    with Shard(tar_path, index=index) as shard:
        with pytest.raises(ShardError, match=r"example 'b': .*checksum"):
            shard.example(1)
        for number in (0, 2, 3, 4):
            assert shard.example(number) == make(IDS[number])


def test_a_damaged_header_hides_no_other_example(tar_path: Path, index: ShardIndex) -> None:
    data = bytearray(tar_path.read_bytes())
    data[index.offsets[1] : index.offsets[1] + 512] = bytes(512)
    tar_path.write_bytes(data)
    with pytest.raises(ShardError, match="damaged"):
        Shard(tar_path)
    with Shard(tar_path, index=index) as shard:
        with pytest.raises(ShardError, match=r"checksum.* \(example number 1\)") as caught:
            shard.example(1)
        assert caught.value.key is None
        with pytest.raises(ShardError, match=r"no readable tar header.* \(example number 1\)"):
            shard.key(1)
        assert [shard.example(number).id for number in (0, 2, 3, 4)] == ["a", *IDS[2:]]


def test_a_cut_off_shard_keeps_its_first_examples(tar_path: Path, index: ShardIndex) -> None:
    with open(tar_path, "r+b") as file:
        file.truncate(int(index.offsets[2]) + 1000)
    with Shard(tar_path, index=index) as shard:
        assert [shard.example(number).id for number in (0, 1)] == IDS[:2]
        with pytest.raises(
            ShardError, match=r"example 'c': it should lie at bytes .* but the file ends at 6120"
        ) as caught:
            shard.example(2)
        assert caught.value.kind == "shard"
        with pytest.raises(ShardError, match=r"number 4"):
            shard.example(4)
    with RandomAccess(tar_path) as file, pytest.raises(DamageError, match="cut off"):
        checksums(file.read, index.offsets.tolist(), file.size + 1)


def test_a_file_that_shrinks_while_it_is_open_is_noticed(tar_path: Path, index: ShardIndex) -> None:
    with Shard(tar_path, index=index) as shard:
        os.truncate(tar_path, 700)
        with pytest.raises(ShardError, match="cut off while it was being read"):
            shard.example(0)


def test_a_huge_range_is_never_read(tmp_path: Path, reads: list[tuple[int, int]]) -> None:
    path = tar(tmp_path / "huge.tar", members_of("a"))
    size = (MAX_EXAMPLE_BYTES // 512 + 1) * 512
    os.truncate(path, size)  # No such space is used: the file has a hole.
    index = ShardIndex(np.array([0, size]), np.zeros(1, dtype=np.uint32))
    with Shard(path, index=index) as shard, pytest.raises(ShardError, match=r"'a': it has .* the limit is"):
        shard.example(0)
    assert max(size for _, size in reads) <= 2**20


def test_no_more_memory_is_taken_than_the_file_has(tar_path: Path) -> None:
    file, size = RandomAccess(tar_path), tar_path.stat().st_size
    tracemalloc.start()
    assert len(file.read(512, 2**33)) == size - 512
    assert tracemalloc.get_traced_memory()[1] < 2 * size
    tracemalloc.stop()
    assert [file.read(offset, 512) for offset in (size, size + 1, 2**62, 2**80)] == [b""] * 4
    file.close()


def test_the_key_in_the_json_must_be_that_of_the_members(tmp_path: Path) -> None:
    members = [("b.json", dict(members_of("a"))["a.json"]), ("b.jpg", dict(members_of("a"))["a.jpg"])]
    path = tar(tmp_path / "x.tar", members)
    index = index_of(path)
    with pytest.raises(ShardError, match="example 'b': the json member has the id 'a'") as caught:
        Shard(path, index=index).example(0)
    assert caught.value.kind == "invalid"


# --- the kinds of what is wrong ---


def test_errors_have_a_kind(tmp_path: Path) -> None:
    good = dict(members_of("a"))
    json_member, image = ("a.json", good["a.json"]), ("a.jpg", good["a.jpg"])
    cases: dict[str, list[list[tuple[str, bytes]]]] = {
        "member": [[json_member], [image], [json_member, image, ("a.1.jpg", b"")], [("a.txt", b"")]],
        "image": [[json_member, ("a.jpg", b"no image")], [json_member, ("a.jpg", b"")]],
        "invalid": [[("a.json", b"{"), image], [("a.json", b"[]"), image], [("a.json", b'{"id": "a"}')]],
    }
    for kind, contents in cases.items():
        for number, members in enumerate(contents):
            path = tar(tmp_path / f"{kind}-{number}.tar", members)
            with pytest.raises(ShardError, match="example 'a'") as caught:
                Shard(path).example(0)
            assert (caught.value.kind, kind in KINDS) == (kind, True), members
    with pytest.raises(ShardError) as unreachable:
        Shard(tmp_path / "nothing.tar")
    assert unreachable.value.kind == "unreachable"
    with pytest.raises(ShardError) as folder:
        Shard(tmp_path)
    assert folder.value.kind == "unreachable"


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ShardError("s.tar", "k", "is odd", "slow")))
    assert (str(error), error.kind) == ("shard s.tar, example 'k': is odd", "slow")
    assert (error.shard, error.key, error.reason) == ("s.tar", "k", "is odd")


# --- sidecar files ---


@pytest.mark.parametrize(
    ("offsets", "crc32", "reason"),
    [
        ([0, 1024, 512], [1, 2], "example 1 cannot reach from byte 1024 to 512"),
        ([0, 512, 512], [1, 2], "example 1 cannot reach"),
        ([0, -512], [1], "example 0 cannot reach"),
        ([0, 700], [1], "example 0 cannot reach from byte 0 to 700"),
        ([512, 1024], [1], "starts at byte 512 instead of 0"),
        ([0, 512], [1, 2], "2 offsets do not fit to 2 checksums"),
        ([-(2**63), 2**63 - 1], [1], "starts at byte"),
        ([], [], "0 offsets do not fit"),
        ([[0, 512]], [1], "must be int64"),
    ],
)
def test_impossible_offsets_are_refused(offsets: Any, crc32: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ShardIndex(np.array(offsets, dtype=np.int64), np.array(crc32, dtype=np.uint32))
    with pytest.raises(ValueError, match="must be int64"):
        ShardIndex(np.array([0, 512], dtype=np.int32), np.array([1], dtype=np.uint32))


def sidecar(version: Any = 1, **arrays: Any) -> bytes:
    header = {"v1lit_shard_index": json.dumps({"version": version})}
    standard = {"offsets": np.array([0, 512]), "crc32": np.array([1], dtype=np.uint32)}
    return save({**standard, **arrays}, header)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a readable file"),
        (b"\x80\x04K\x01.", "not a readable file"),
        (pickle.dumps({"offsets": [0]}), "not a readable file"),
        (save({"offsets": np.array([0, 512])}), "not a readable file"),
        (sidecar()[:-1], "not a readable file"),
        (sidecar() + b"\0", "not a readable file"),
        (b"\xff" * 8 + sidecar()[8:], "not a readable file"),
        (sidecar(version=2), "version 2, this version of v1lit reads 1"),
        (sidecar(version=None), "version None"),
        (sidecar(more=np.array([1])), "it holds crc32, more, offsets"),
        (sidecar(offsets=np.array([0.0, 512.0])), "must be int64"),
        (sidecar(offsets=np.array([0, 512], dtype=np.uint64)), "must be int64"),
        (sidecar(crc32=np.array([1, 2], dtype=np.uint32)), "do not fit"),
        (sidecar(offsets=np.array([0, -1])), "cannot reach"),
    ],
)
def test_other_files_are_no_index(data: bytes, reason: str) -> None:
    with pytest.raises(
        ShardError, match=f"shard s.tar: its index cannot be used: .*{reason}.*v1lit data index"
    ):
        read_shard_index(data, shard="s.tar")


def test_an_index_must_fit_to_what_index_json_says(folder: Path) -> None:
    info = list_shards(folder)[0]
    assert verify_shard(folder, info)
    for wrong, reason in (
        (replace(info, examples=4), "it has 5 examples, but index.json says 4"),
        (replace(info, bytes=1024), "but the shard has 1024 bytes"),
    ):
        with pytest.raises(ShardError, match=reason):
            read_sidecar(folder, wrong)
    (folder / sidecar_name(info.file)).unlink()
    assert not verify_shard(folder, info)
    with pytest.raises(
        ShardError, match=r"shard-000000\.tar: its index .* cannot be read .*data index"
    ) as caught:
        read_sidecar(folder, info)
    assert caught.value.kind == "unreachable"


# --- index.json ---


@pytest.mark.parametrize(
    "change",
    [
        {"examples": -1},
        {"examples": True},
        {"examples": "5"},
        {"examples": 2**64},
        {"examples": 6},
        {"bytes": None},
        {"file": 3},
        {"sha256": 3},
    ],
)
def test_an_index_json_with_wrong_values_is_damaged(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "index.json"
    content = json.loads(path.read_text())
    content["shards"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"index\.json is damaged"):
        read_index(folder)


@pytest.mark.parametrize(
    "file", ["../x.tar", "/tmp/x.tar", "a/x.tar", "..", "", "a\\x.tar", "x\0.tar", "x\n.tar", "s3://b/x.tar"]
)
def test_an_index_json_names_files_beside_it(folder: Path, file: str) -> None:
    path = folder / "index.json"
    content = json.loads(path.read_text())
    content["shards"][0]["file"] = file
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="outside of its folder"):
        read_index(folder)


def test_an_index_of_files_elsewhere_names_them_in_full(tmp_path: Path) -> None:
    shards = [
        ShardInfo(file, 1, 1, 1, 10240, "0" * 64)
        for file in ("/data/x.tar", "/other/x.tar", "s3://bucket/x.tar", "https://host/x.tar?token=1/2")
    ]
    write_index(tmp_path, shards, location="/data/*.tar")
    assert list(read_index(tmp_path)["shards"]) == shards
    assert [shard_location(tmp_path, shard.file) for shard in shards] == [shard.file for shard in shards]
    sidecars = [sidecar_location(tmp_path, shard.file) for shard in shards]
    assert len(set(sidecars)) == 4
    assert {os.path.dirname(path) for path in sidecars} == {str(tmp_path)}
    assert all(os.path.basename(path).startswith("x-") for path in sidecars)
    with pytest.raises(ValueError, match=r"/data/x\.tar is missing"):
        list_shards(tmp_path)
    write_index(tmp_path, [replace(shards[0], file="../x.tar")], location="/data/*.tar")
    with pytest.raises(ValueError, match="outside of its folder"):
        read_index(tmp_path)


def test_the_shards_of_an_index_are_columns(tmp_path: Path) -> None:
    shards = [ShardInfo(f"{n}.tar", n, 2 * n, 3 * n, 512 * n, f"{n:064x}") for n in range(5)]
    written = write_index(tmp_path, shards, origin={"from": "here"})
    index = read_index(tmp_path)
    table = index["shards"]
    assert (index["examples"], index["images"], index["origin"]) == (10, 20, {"from": "here"})
    assert (table.examples.tolist(), table.examples.dtype) == ([0, 1, 2, 3, 4], np.int64)
    assert (len(table), table[3], table[-1], list(table)) == (5, shards[3], shards[4], shards)
    assert json.loads((tmp_path / "index.json").read_text()) == written
    write_index(tmp_path, [])
    assert len(read_index(tmp_path)["shards"]) == 0
