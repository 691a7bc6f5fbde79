"""Shards that others wrote get an index: in parallel, resumable, with what is wrong in them counted."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.shard_cases import index_of, jpeg, make, members_of, tar, write

from v1lit.data.errors import ShardError
from v1lit.data.example import Example
from v1lit.data.shards import (
    Shard,
    index_one,
    index_shards,
    list_shards,
    make_index,
    read_index,
    read_sidecar,
    shard_location,
    verify_shard,
)
from v1lit.files import sha256_of

INVALID = [
    ("bad.json", b'{"id": "bad", "messages": [], "images": [1, 2], "regions": {"x": 1}}'),
    ("bad.jpg", b""),
]


def foreign(folder: Path, shards: int = 3, examples: int = 4) -> Path:
    """Shards of another program: its own header fields, no padding to whole records, no index."""
    for number in range(shards):
        members = [pair for k in range(examples) for pair in members_of(f"s{number}-{k}")]
        tar(folder / f"data-{number}.tar", members, mtime=12345, uname="them", uid=7)
    return folder


def read_all(folder: Path) -> list[Example]:
    examples = []
    for info in list_shards(folder):
        with Shard(shard_location(folder, info.file), index=read_sidecar(folder, info)) as shard:
            assert len(shard) == info.examples
            examples += [shard.example(number) for number in range(len(shard))]
    return examples


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".") or ".tmp" in path.name]


@pytest.fixture
def read_shards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are read."""
    names: list[str] = []
    original = index_one._read

    def spy(task: Any, path: str, stamp: Any) -> Any:
        names.append(os.path.basename(task.location))
        return original(task, path, stamp)

    monkeypatch.setattr(index_one, "_read", spy)
    return names


# --- folders ---


def test_foreign_shards_are_read_like_our_own(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "x")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = index_shards(str(folder), workers=1)
    expected = [make(f"s{number}-{k}") for number in range(3) for k in range(4)]
    assert read_all(folder) == expected
    assert (report["examples"], report["images"], report["regions"]) == (12, 12, 12)
    assert (report["problems"], report["bad"]) == ({}, [])
    assert {name: (folder / name).read_bytes() for name in before} == before
    for info in list_shards(folder):
        assert verify_shard(folder, info)
        assert (info.sha256, info.bytes) == (
            sha256_of(folder / info.file),
            (folder / info.file).stat().st_size,
        )
    assert leftovers(folder) == []


def test_shards_of_webdataset_are_indexed(tmp_path: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for id in ("p", "q"):
            sink.write({"__key__": id, **make(id).to_members()})
    index_shards(str(tmp_path), workers=1)
    assert read_all(tmp_path) == [make("p"), make("q")]


def test_several_processes_give_the_same_bytes(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "x")
    reports, files = [], []
    for workers in (1, 2):
        reports.append(index_shards(str(folder), workers=workers))
        made = [path for path in folder.iterdir() if path.suffix != ".tar"]
        files.append({path.name: path.read_bytes() for path in made})
        for path in made:
            path.unlink()
    assert files[0] == files[1]
    assert reports[0] == reports[1]
    with pytest.raises(ValueError, match="workers is 0"):
        index_shards(str(folder), workers=0)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no shards"):
        index_shards(str(tmp_path))
    with pytest.raises(ValueError, match="nothing"):
        index_shards(str(tmp_path / "nothing"))


def test_an_index_of_our_own_shards_keeps_where_they_come_from(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", ["a", "b"])
    path = folder / "index.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({**before, "import": {"from": "there"}}))
    (folder / "shard-000000.index.safetensors").unlink()
    assert index_shards(str(folder))["import"] == {"from": "there"}
    assert list(read_index(folder)["shards"]) == list_shards(folder)
    tar(folder / "shard-000001.tar", members_of("c"))
    assert "import" not in index_shards(str(folder))
    assert read_index(folder)["examples"] == 3


# --- what is wrong in them ---


def test_bad_examples_are_counted_and_listed(tmp_path: Path) -> None:
    json_member = members_of("c")[0]
    contents = [
        *members_of("a"),
        *INVALID,
        json_member,
        ("c.jpg", b"no image"),
        ("d.txt", b"a caption"),
        ("../e.json", b"{}"),
        *members_of("z"),
    ]
    tar(tmp_path / "x.tar", contents)
    report = index_shards(str(tmp_path), workers=1)
    # "bad" says 2 images and 1 region, "c" says 1 and 1.
    assert (report["examples"], report["images"], report["regions"]) == (6, 5, 4)
    assert report["problems"] == {"invalid": 1, "image": 1, "member": 2}
    assert read_index(tmp_path)["problems"] == report["problems"]
    shard = str(tmp_path / "x.tar")
    found = [(entry["shard"], entry["key"], entry["kind"]) for entry in report["bad"]]
    assert found == [
        (shard, "bad", "invalid"),
        (shard, "c", "image"),
        (shard, "d", "member"),
        (shard, None, "member"),
    ]
    info = list_shards(tmp_path)[0]
    with Shard(tmp_path / "x.tar", index=read_sidecar(tmp_path, info)) as opened:
        assert [opened.example(number).id for number in (0, 5)] == ["a", "z"]
        with pytest.raises(ShardError, match=r"'\.\./e\.json' is not named"):
            opened.example(4)
    assert index_shards(str(tmp_path), workers=1) == report


def test_keys_that_come_again_are_reported(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", [*members_of("a"), *members_of("b"), *members_of("a")])
    report = index_shards(str(tmp_path), workers=1)
    assert (report["examples"], report["problems"]) == (3, {"member": 1})
    assert report["bad"][0]["key"] == "a"


@pytest.mark.parametrize("damage", ["cut in a header", "cut in an image", "cut between", "zeros", "noise"])
def test_of_a_damaged_shard_the_part_before_is_indexed(tmp_path: Path, damage: str) -> None:
    folder = foreign(tmp_path / "x", shards=2)
    path = folder / "data-1.tar"
    whole = path.read_bytes()
    third = index_of(path).offsets[2]
    path.write_bytes(
        {
            "cut in a header": whole[: third + 100],
            "cut in an image": whole[: third + 2000],
            "cut between": whole[:third],
            "zeros": whole[:third] + bytes(512) + whole[third + 512 :],
            "noise": whole[:third] + b"\x55" * 512 + whole[third + 512 :],
        }[damage]
    )
    report = index_shards(str(folder), workers=1)
    assert report["problems"]["shard"] == 1
    assert [info.examples for info in list_shards(folder)] == [4, 3 if damage == "cut in an image" else 2]
    with Shard(path, index=read_sidecar(folder, list_shards(folder)[1])) as shard:
        assert [shard.example(number).id for number in range(2)] == ["s1-0", "s1-1"]


def test_files_without_examples_are_refused_together_and_named_alone(tmp_path: Path) -> None:
    (tmp_path / "other.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(
        ValueError, match=r"no examples in 1 shards; .*other\.tar: not a complete, uncompressed"
    ):
        index_shards(str(tmp_path))
    assert not (tmp_path / "index.json").exists()
    tar(tmp_path / "good.tar", members_of("a"))
    report = index_shards(str(tmp_path), workers=1)
    assert ([info.examples for info in list_shards(tmp_path)], report["problems"]) == ([1, 0], {"shard": 1})


def test_a_shard_that_cannot_be_opened_stops_it(tmp_path: Path) -> None:
    foreign(tmp_path, shards=1)
    (tmp_path / "gone.tar").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ShardError, match=r"gone\.tar: cannot be opened") as caught:
        index_shards(str(tmp_path))
    assert caught.value.kind == "unreachable"


# --- resuming ---


def test_only_new_and_changed_shards_are_read_again(tmp_path: Path, read_shards: list[str]) -> None:
    folder = foreign(tmp_path / "x")
    first = index_shards(str(folder), workers=1)
    assert read_shards == ["data-0.tar", "data-1.tar", "data-2.tar"]
    read_shards.clear()
    assert index_shards(str(folder), workers=1) == first
    assert read_shards == []
    tar(folder / "data-1.tar", members_of("new"))
    (folder / "data-2.index.safetensors").write_bytes(b"damaged")
    tar(folder / "data-3.tar", members_of("more"))
    index_shards(str(folder), workers=1)
    assert read_shards == ["data-1.tar", "data-2.tar", "data-3.tar"]
    assert [info.examples for info in list_shards(folder)] == [4, 1, 4, 1]
    assert {example.id for example in read_all(folder)} >= {"new", "more", "s2-3"}


def test_a_changed_shard_of_the_same_size_is_read_again(tmp_path: Path, read_shards: list[str]) -> None:
    folder = foreign(tmp_path / "x", shards=1)
    index_shards(str(folder), workers=1)
    path = folder / "data-0.tar"
    old = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Where?", b"Where!"))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    index_shards(str(folder), workers=1)
    assert read_shards == ["data-0.tar"] * 2
    assert read_all(folder)[0].messages[0].content.endswith("Where!")


@pytest.mark.parametrize("workers", [1, 2])
def test_stopping_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_shards: list[str], workers: int
) -> None:
    folder = foreign(tmp_path / "x", shards=6)
    original = make_index._write

    def interrupted(path: Path, content: bytes) -> None:
        if path.name.startswith("data-2"):
            raise KeyboardInterrupt
        original(path, content)

    monkeypatch.setattr(make_index, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index_shards(str(folder), workers=workers)
    names = sorted(path.name for path in folder.iterdir())
    assert names[:2] == ["data-0.index.safetensors", "data-0.tar"]
    assert "index.json" not in names
    assert sum(name.endswith(".safetensors") for name in names) == 2
    assert leftovers(folder) == []
    monkeypatch.setattr(make_index, "_write", original)
    read_shards.clear()
    index_shards(str(folder), workers=1)
    assert read_shards == [f"data-{number}.tar" for number in (2, 3, 4, 5)]
    assert len(read_all(folder)) == 24


def test_what_a_sidecar_says_is_not_trusted_blindly(tmp_path: Path, read_shards: list[str]) -> None:
    """Records with wrong types or counts are as good as none."""
    folder = foreign(tmp_path / "x", shards=1)
    expected = index_shards(str(folder), workers=1)
    path = folder / "data-0.index.safetensors"
    good = path.read_bytes()
    index = read_sidecar(folder, list_shards(folder)[0])
    record = index_one.read_record(good)
    wrong: list[Any] = [
        {**record, "info": {**record["info"], "images": "many"}},
        {**record, "info": {**record["info"], "examples": 3}},
        {**record, "info": {**record["info"], "bytes": -1}},
        {**record, "info": None},
        {**record, "problems": []},
        {**record, "problems": {"image": "x"}},
        {**record, "bad": 3},
        {**record, "bad": [[1]]},
        {},
    ]
    for changed in wrong:
        read_shards.clear()
        path.write_bytes(index.to_bytes(changed))
        assert index_shards(str(folder), workers=1) == expected
        assert read_shards == ["data-0.tar"], changed
        assert path.read_bytes() == good


# --- an index in a folder of its own ---


def test_a_pattern_needs_a_folder_for_the_index(tmp_path: Path) -> None:
    foreign(tmp_path / "p")
    foreign(tmp_path / "q")
    some = str(tmp_path / "p" / "data-[01].tar")
    with pytest.raises(ValueError, match="give a folder for the index with --out"):
        index_shards(some)
    out = tmp_path / "index"
    report = index_shards(some, str(out), workers=1)
    assert [info.file for info in list_shards(out)] == [str(tmp_path / "p" / f"data-{k}.tar") for k in (0, 1)]
    assert report["location"] == some
    assert len(read_all(out)) == 8
    assert not list((tmp_path / "p").glob("*.safetensors"))


def test_shards_of_the_same_name_keep_their_own_indexes(tmp_path: Path) -> None:
    foreign(tmp_path / "p", shards=1, examples=2)
    tar(tmp_path / "q" / "data-0.tar", members_of("other"))
    out = tmp_path / "index"
    index_shards(str(tmp_path / "{p,q}" / "*.tar"), str(out), workers=1)
    assert [example.id for example in read_all(out)] == ["s0-0", "s0-1", "other"]


def test_a_pattern_of_all_shards_of_a_folder_is_that_folder(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "p")
    index_shards(str(folder / "*.tar"), workers=1)
    assert [info.file for info in list_shards(folder)] == ["data-0.tar", "data-1.tar", "data-2.tar"]
    assert index_shards(str(folder), str(folder), workers=1)["examples"] == 12
    assert "location" not in read_index(folder)


@pytest.mark.parametrize("content", [b"", b"not JSON", b"{}" + b" " * 600])
def test_an_index_that_nobody_can_use_is_made_again(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = foreign(tmp_path / "f")
    index_shards(folder, workers=1)
    whole = (folder / "index.json").read_bytes()
    (folder / "index.json").write_bytes(content)
    with monkeypatch.context() as patch:
        if len(content) > 512:
            patch.setattr("v1lit.data.shards.index.MAX_INDEX_BYTES", 512)
        index_shards(folder, workers=1)
    assert json.loads((folder / "index.json").read_bytes()) == json.loads(whole)


def test_the_index_of_other_shards_is_not_overwritten(tmp_path: Path) -> None:
    first, second = foreign(tmp_path / "p"), foreign(tmp_path / "q")
    out = str(tmp_path / "index")
    index_shards(str(first), out, workers=1)
    with pytest.raises(ValueError, match=r"holds the index of .*p: choose another folder"):
        index_shards(str(second), out)
    index_shards(str(second), workers=1)
    with pytest.raises(ValueError, match="holds the index of the shards in it"):
        index_shards(str(first), str(second))
    assert index_shards(str(first), out, workers=1)["examples"] == 12


# --- far away ---


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """URL and folder of a web server on this machine, and the whole files it sent."""
    sent: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if "bytes=0-0" not in self.headers.get("Range", ""):
                sent.append(os.path.basename(self.path))
            super().do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder, sent
        running.shutdown()


def test_remote_shards_get_an_index_on_this_machine(
    tmp_path: Path, server: tuple[str, Path, list[str]]
) -> None:
    url, folder, sent = server
    foreign(folder, shards=2)
    location = f"{url}/data-{{0..1}}.tar"
    with pytest.raises(ValueError, match="give a folder for the index"):
        index_shards(location)
    out = tmp_path / "index"
    report = index_shards(location, str(out), workers=1)
    shards = list_shards(out)
    assert [info.file for info in shards] == [f"{url}/data-0.tar", f"{url}/data-1.tar"]
    assert sorted(sent) == ["data-0.tar", "data-1.tar"]
    assert leftovers(out) == []
    for number, info in enumerate(shards):
        assert replace(info, file="") == replace(
            info, file="", sha256=sha256_of(folder / f"data-{number}.tar")
        )
        index = read_sidecar(out, info)
        with Shard(folder / f"data-{number}.tar", name=info.file, index=index) as shard:
            assert shard.example(3) == make(f"s{number}-3")
    sent.clear()
    assert index_shards(location, str(out), workers=1) == report
    assert sent == []


def test_a_folder_with_its_index_is_read_from_far_away(server: tuple[str, Path, list[str]]) -> None:
    url, folder, _ = server
    write(folder / "made", ["a", "b"])
    shards = list_shards(f"{url}/made")
    assert shards == list_shards(folder / "made")
    assert len(read_sidecar(f"{url}/made", shards[0])) == 2
    with pytest.raises(ValueError, match=r"/nothing has no index\.json"):
        read_index(f"{url}/nothing")
    content = json.loads((folder / "made/index.json").read_text())
    content["shards"][0]["file"] = "/etc/passwd"
    (folder / "made/index.json").write_text(json.dumps({**content, "location": "x"}))
    with pytest.raises(ValueError, match="outside of its folder"):
        read_index(f"{url}/made")


def test_images_are_not_decoded(tmp_path: Path) -> None:
    """Indexing checks headers; whether pixels can be decoded is what `v1lit data check` finds out."""
    cut = jpeg(0)[:-20]
    tar(tmp_path / "x.tar", [members_of("a")[0], ("a.jpg", cut)])
    assert index_shards(str(tmp_path))["problems"] == {}
