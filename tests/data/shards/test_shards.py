"""Shards are plain reproducible tar files, and a damaged or hostile one is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from helpers.shard_cases import jpeg, make, members_of, read_all, tar, write

from v1lit.data.errors import ShardError
from v1lit.data.example import Example
from v1lit.data.shards import Shard, ShardWriter, list_shards, read_index, verify_shard
from v1lit.data.shards import member as limits
from v1lit.data.shards import writer as writer_module

pytestmark = pytest.mark.dependencies

# --- writing and reading ---


def test_written_examples_come_back_in_order(tmp_path: Path) -> None:
    originals = [make("a"), make("b.c/d", images=3), make("é 中", images=0)]
    with ShardWriter(tmp_path) as writer:
        for example in originals:
            writer.write(example)
    read = [Example.from_members(key, members) for key, members in read_all(tmp_path / "shard-000000.tar")]
    assert read == originals


def test_new_shards_begin_at_the_limits(tmp_path: Path) -> None:
    ids = [f"id_{number}" for number in range(7)]
    by_count = write(tmp_path / "count", ids, max_examples=3)
    assert [shard.examples for shard in list_shards(by_count)] == [3, 3, 1]
    one = sum(512 + -(-len(data) // 512) * 512 for _, data in members_of("id_0"))
    by_size = write(tmp_path / "size", ids, max_bytes=2 * one)
    assert [shard.examples for shard in list_shards(by_size)] == [2, 2, 2, 1]
    tiny = write(tmp_path / "tiny", ids[:2], max_bytes=1)
    assert [shard.examples for shard in list_shards(tiny)] == [1, 1]


def test_same_examples_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, ["a", "b"]) for name in "12")
    for name in ["shard-000000.tar", "index.json"]:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    with tarfile.open(first / "shard-000000.tar") as file:
        for info in file:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")


def test_index_counts_and_checksums(tmp_path: Path) -> None:
    write(tmp_path, ["a", "b", "c"], max_examples=2)
    index = read_index(tmp_path)
    assert (index["schema_version"], index["examples"], index["images"], index["regions"]) == (2, 3, 3, 3)
    first, second = list_shards(tmp_path)
    assert verify_shard(tmp_path, first)
    path = tmp_path / second.file
    path.write_bytes(path.read_bytes().replace(b"Where?", b"Where!"))
    assert not verify_shard(tmp_path, second)
    path.unlink()
    assert not verify_shard(tmp_path, second)
    with pytest.raises(ValueError, match=r"shard-000001\.tar is missing"):
        list_shards(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"schema_version": 2, "shards": [{"file": "x"}]}', "is damaged"),
        ('{"schema_version": 99, "shards": []}', "schema version 99"),
    ],
)
def test_bad_index_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        read_index(tmp_path)


def test_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, ["a"])
    index = (tmp_path / "index.json").read_text()
    (tmp_path / "index.json").write_text(index.replace("shard-000000.tar", "../shard-000000.tar"))
    with pytest.raises(ValueError, match="outside of its folder"):
        list_shards(tmp_path)


def test_folder_without_index_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="incomplete"):
        read_index(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        read_index(tmp_path / "nothing")


@pytest.mark.parametrize("ending", [KeyboardInterrupt, OSError])
def test_nothing_half_written_stays_when_a_shard_cannot_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException]
) -> None:
    def end(*_: object) -> None:
        raise ending

    monkeypatch.setattr(writer_module, "write_atomically", end)
    writer = ShardWriter(tmp_path)
    writer.write(make("a"))
    with pytest.raises(ending):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_stays_after_an_error(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ShardWriter(tmp_path, max_examples=1) as writer:
            writer.write(make("a"))
            writer.write(make("b"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "shard-000000.index.safetensors",
        "shard-000000.tar",
    ]
    assert len(list(read_all(tmp_path / "shard-000000.tar"))) == 1


def test_writer_refuses_doubles_large_members_and_used_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.write(make("a"))
        with pytest.raises(ValueError, match="'a' was written before"):
            writer.write(make("a"))
        monkeypatch.setattr(limits, "MAX_IMAGE_BYTES", 100)
        with pytest.raises(ValueError, match=r"'b\.jpg' has .* bytes, the limit is 100"):
            writer.write(make("b"))
    assert writer.shards[0].examples == 1
    with pytest.raises(ValueError, match="already holds shards"):
        ShardWriter(tmp_path)


def test_plain_webdataset_reads_the_shards(tmp_path: Path) -> None:
    import webdataset

    ids = ["a.b/c", "plain", "ü"]
    write(tmp_path, ids)
    samples = list(webdataset.WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["a%2Eb%2Fc", "plain", "%C3%BC"]
    assert [json.loads(sample["json"])["id"] for sample in samples] == ids
    assert all(sample["jpg"] == jpeg(0) for sample in samples)


def test_long_ids_survive(tmp_path: Path) -> None:
    ids = ["x" * 300 + str(number) for number in range(2)]
    write(tmp_path, ids)
    assert [key for key, _ in read_all(tmp_path / "shard-000000.tar")] == ids


# --- suspicion ---


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "/etc/evil.json",
        "a\\b.json",
        ".json",
        "a",
        "..json",
    ],
)
def test_paths_and_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    path = tar(tmp_path / "odd.tar", [*members_of("good"), (name, b"{}")])
    with pytest.raises(ShardError, match=r"odd\.tar: the member .* is not named"):
        Shard(path)


@pytest.mark.parametrize("kind", ["pyd", "pth", "pkl", "npy", "txt", "JPG.pyd", "0.pyd"])
def test_unknown_kinds_are_refused_and_never_decoded(tmp_path: Path, kind: str) -> None:
    harmful = b"cposix\nsystem\n(S'exit 1'\ntR."
    path = tar(tmp_path / "odd.tar", [*members_of("good"), *members_of("bad"), (f"bad.{kind}", harmful)])
    with Shard(path) as shard:
        assert shard.example(0) == make("good")
        with pytest.raises(
            ShardError, match=rf"odd\.tar, example 'bad': the member 'bad\.{kind}' is of no known kind"
        ):
            shard.members(1)


@pytest.mark.parametrize(
    "type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_special_files_are_refused(tmp_path: Path, type: bytes) -> None:
    path = tar(tmp_path / "link.tar", [("a.json", b"")], type=type, linkname="/etc/passwd")
    with pytest.raises(ShardError, match=r"link\.tar, example 'a': .* only plain files"):
        list(read_all(path))


def test_member_size_is_limited_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ["a"])
    monkeypatch.setattr(limits, "MAX_JSON_BYTES", 100)
    with pytest.raises(ShardError, match=r"example 'a': the member 'a\.json' has .* bytes, the limit is 100"):
        list(read_all(tmp_path / "shard-000000.tar"))


def test_double_members_and_examples_are_refused(tmp_path: Path) -> None:
    double = tar(tmp_path / "member.tar", [*members_of("a"), ("a.jpg", jpeg(1))])
    with pytest.raises(ShardError, match=r"the member 'a\.jpg' occurs twice"):
        list(read_all(double))
    again = tar(tmp_path / "example.tar", [*members_of("a"), *members_of("b"), *members_of("a")])
    with pytest.raises(ShardError, match="example 'a': occurs twice"):
        list(read_all(again))


def test_bad_example_names_shard_and_key(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", [*members_of("a"), ("b.json", b'{"id": "b", "messages": []}')])
    with (
        Shard(path) as shard,
        pytest.raises(ShardError, match=r"x\.tar, example 'b': turns must be") as caught,
    ):
        shard.example(1)
    assert (caught.value.key, caught.value.shard) == ("b", str(path))


def test_cut_off_shards_are_noticed_wherever_they_end(tmp_path: Path) -> None:
    whole = (write(tmp_path, ["a", "b", "c"]) / "shard-000000.tar").read_bytes()
    with tarfile.open(tmp_path / "shard-000000.tar") as file:
        starts = [info.offset for info in file]
    path = tmp_path / "cut.tar"
    for end in [
        0,
        1,
        100,
        512,
        *starts[1:],
        *(start + 700 for start in starts),
        len(whole.rstrip(b"\0")) + 600,
    ]:
        path.write_bytes(whole[:end])
        with pytest.raises(ShardError, match=r"cut\.tar"):
            Shard(path)


@pytest.mark.parametrize("position", [3, 100, 125, 150])
def test_damaged_header_in_the_middle_is_noticed(tmp_path: Path, position: int) -> None:
    data = bytearray((write(tmp_path, ["a", "b", "c"]) / "shard-000000.tar").read_bytes())
    with tarfile.open(tmp_path / "shard-000000.tar") as file:
        start = [info.offset for info in file][3]
    data[start + position] ^= 0x55
    path = tmp_path / "damaged.tar"
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"damaged\.tar"):
        list(read_all(path))


@pytest.mark.parametrize("size", [-512, -1024])
def test_negative_sizes_do_not_hang(tmp_path: Path, size: int) -> None:
    """tarfile would look for the next header at this one, or further back, for ever."""
    info = tarfile.TarInfo("b.json")
    info.size = size
    path = tar(tmp_path / "negative.tar", [("a.json", b"{}")])
    path.write_bytes(path.read_bytes()[:1024] + info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(ShardError, match=r"'b\.json' has a negative size"):
        Shard(path)


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    sparse = {"GNU.sparse.map": "0,2", "GNU.sparse.size": str(2**20)}
    path = tar(tmp_path / "sparse.tar", [("a.json", b"{}")], pax_headers=sparse)
    with pytest.raises(ShardError, match=r"sparse\.tar, example 'a': .* only plain files"):
        list(read_all(path))


@pytest.mark.parametrize("content", [b"", b"no tar file at all" * 100, b"\x1f\x8b" + bytes(2000)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.tar"
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"other\.tar: not a complete, uncompressed tar file"):
        Shard(path)
    with pytest.raises(ShardError, match="cannot be opened"):
        Shard(tmp_path / "missing.tar")


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as file:
        file.addfile(tarfile.TarInfo("a.json"))
    with pytest.raises(ShardError, match="uncompressed"):
        Shard(tmp_path / "x.tar")


def test_reading_shards_loads_neither_torch_nor_webdataset() -> None:
    code = (
        "import sys, v1lit.data.shards;"
        "print([n for n in ('torch', 'webdataset', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
