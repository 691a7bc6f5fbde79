"""Shards as other programs make them: reading, indexing, checking, resharding and showing agree on them."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest
from helpers.shard_cases import make, members_of, tar

from v1lit.data.config import SourceConfig
from v1lit.data.errors import ShardError
from v1lit.data.example import Example
from v1lit.data.loading.dataset import ShardDataset
from v1lit.data.shards import Shard, ShardWriter, index_shards, list_shards, read_sidecar
from v1lit.data.shards.names import kind_of, possible_keys
from v1lit.data.sources.registry import prepare_source
from v1lit.data.tools.check import CheckReport, check
from v1lit.data.tools.reshard import ReshardOptions, reshard
from v1lit.data.tools.show import show

NAME = "x.tar"
Members = list[tuple[str, bytes]]


def named(key: str, id: str | None = None, images: int = 1, change: Callable[[str], str] = str) -> Members:
    """The members of an example under another name than ours."""
    return [(f"{key}.{change(kind)}", data) for kind, data in make(id or key, images).to_members().items()]


def last_first(members: Members) -> Members:
    return members[::-1]


GOOD: dict[str, tuple[Members, list[str]]] = {
    "./": ([(f"./{name}", data) for name, data in [*members_of("a"), *members_of("b")]], ["a", "b"]),
    "a folder": ([*named("sub/a", "a"), *named("sub/b", "sub/b")], ["sub/a", "sub/b"]),
    "one name in two folders": ([*named("one/a", "a"), *named("two/a", "a")], ["one/a", "two/a"]),
    "capitals": ([*named("a", change=str.upper), *named("B")], ["a", "B"]),
    "ids as they are": (
        [*named("é"), *named("my photo"), *named("50%"), *named("日本")],
        ["é", "my photo", "50%", "日本"],
    ),
    "accents of a Mac": (named(normalize("NFD", "é"), "é"), [normalize("NFD", "é")]),
    "dots": ([*named("photo.v2"), *named("v1.2.3"), *named("a.jpg")], ["photo.v2", "v1.2.3", "a.jpg"]),
    "dots, image first": ([*last_first(named("p.0")), *last_first(named("p.1"))], ["p.0", "p.1"]),
    "dots, several images": ([*named("p.1", images=2), *last_first(named("p.2", images=2))], ["p.1", "p.2"]),
    "several images, image first": ([*last_first(named("p", images=3)), *named("q", images=2)], ["p", "q"]),
    "no image": ([*named("p.1", images=0), *named("p.2", images=0)], ["p.1", "p.2"]),
    "clutter of a Mac": (
        [
            ("._a.json", b"x"),
            *members_of("a"),
            (".DS_Store", b"x"),
            ("__MACOSX/._b.jpg", b""),
            *members_of("b"),
        ],
        ["a", "b"],
    ),
    "clutter at the end": ([*members_of("a"), ("d/._x", b"x"), ("Thumbs.db", b"x")], ["a"]),
    "long names": ([*named("d/" * 60 + "a", "a"), *named("x" * 120)], ["d/" * 60 + "a", "x" * 120]),
}
"""Members, and the names of the examples."""


def tools_on(path: Path) -> tuple[list[Example], CheckReport]:
    """Examples of a shard without an index; everything else must find the same."""
    out = path.parent.parent
    with Shard(path) as shard:
        examples = [shard.example(number) for number in range(len(shard))]
        keys = shard.keys
    assert check([str(path)], workers=1).passed
    report = index_shards(str(path.parent), workers=1)
    assert not report["problems"]
    (info,) = list_shards(path.parent)
    with Shard(path, index=read_sidecar(path.parent, info)) as shard:
        assert [shard.example(number) for number in range(len(shard))] == examples
        assert shard.keys == keys
    assert list(ShardDataset(path.parent, shuffle=False)) == examples
    reshard([str(path.parent)], out / "again", ReshardOptions(examples_per_shard=1), workers=1)
    assert list(ShardDataset(out / "again", shuffle=False)) == examples
    assert [Shard(one).keys[0] for one in sorted((out / "again").glob("*.tar"))] == keys
    assert show(path.parent, out / "page.html", n=9).is_file()
    return examples, check([str(path.parent), str(path)], workers=1)


@pytest.mark.parametrize("case", GOOD)
def test_every_tool_reads_ordinary_shards(case: str, tmp_path: Path) -> None:
    members, keys = GOOD[case]
    path = tar(tmp_path / "in" / NAME, members)
    examples, report = tools_on(path)
    with Shard(path) as shard:
        assert shard.keys == keys
    assert report.passed
    assert report.examples == len(examples) == len(keys)


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
@pytest.mark.parametrize("format", ["gnu", "pax", "ustar"])
def test_a_folder_packed_with_plain_tar_is_read(format: str, tmp_path: Path) -> None:
    for key, folder in (("a", "one"), ("b.c", "one"), ("a", "two"), ("é", "two")):
        for name, data in named(f"{folder}/{key}", key):
            (tmp_path / "files" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "files" / name).write_bytes(data)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / NAME
    command = ["tar", f"--format={format}", "--sort=name", "-cf", path, "-C", tmp_path / "files", "."]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this tar does not sort")
    examples, _ = tools_on(path)
    assert sorted(example.id for example in examples) == ["a", "a", "b.c", "é"]


def everywhere(path: Path, match: str) -> None:
    """Whoever reads the shard says so."""
    with pytest.raises(ShardError, match=match):
        [shard.example(n) for shard in [Shard(path)] for n in range(len(shard))]
    report = check([str(path)], workers=1)
    assert any(match in str(finding) for finding in report.first), report.first
    with pytest.raises(ShardError, match=match):
        reshard([str(path)], path.parent / "again", workers=1)


def test_members_that_are_no_neighbours_are_refused_with_the_remedy(tmp_path: Path) -> None:
    (a, a_jpg), (b, b_jpg), c = members_of("a"), members_of("b"), members_of("c")
    path = tar(tmp_path / NAME, [*c, a, b, a_jpg, b_jpg])
    everywhere(path, "tar --sort=name")
    report = index_shards(str(tmp_path), workers=1)
    assert report["problems"] == {"member": 4}
    assert all("tar --sort=name" in one["reason"] for one in report["bad"])
    skipped = reshard([str(path)], tmp_path / "out", ReshardOptions(on_bad="skip"), workers=1)
    assert (skipped.examples, skipped.skipped) == (1, {"member": 4})


def test_an_example_that_is_there_twice_is_told_apart_from_one_in_two_places(tmp_path: Path) -> None:
    path = tar(tmp_path / NAME, [*members_of("a"), *members_of("b"), *members_of("a")])
    with pytest.raises(ShardError, match="'a': occurs twice"):
        Shard(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_are_refused_in_folders_too(kind: bytes, tmp_path: Path) -> None:
    path = tar(tmp_path / NAME, [("./sub/a.json", b"")], type=kind, linkname="/etc/passwd")
    everywhere(path, "only plain files are read")


def test_an_archive_of_folders_and_clutter_alone_has_no_examples(tmp_path: Path) -> None:
    path = tar(tmp_path / NAME, [("./", b""), ("./sub/", b""), ("./sub/more", b"")], type=tarfile.DIRTYPE)
    assert len(Shard(path)) == 0
    assert check([str(path)], workers=1).examples == 0
    with pytest.raises(ValueError, match="no examples in 1 shards"):
        index_shards(str(tmp_path), workers=1)


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_a_compressed_archive_is_told_how_it_becomes_a_shard(mode: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / NAME, f"w:{mode}") as file:
        for name, data in members_of("a"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    program = {"gz": "gzip", "bz2": "bzip2", "xz": "xz"}[mode]
    everywhere(tmp_path / NAME, f"compressed with {program}, in which")
    (tmp_path / NAME).rename(tmp_path / f"x.tar.{mode}")
    everywhere(tmp_path / f"x.tar.{mode}", f"compressed with {program}, in which")
    for refused in (
        lambda: index_shards(str(tmp_path)),
        lambda: check([str(tmp_path)]),
        lambda: prepare_source(SourceConfig(folder=str(tmp_path))),
    ):
        with pytest.raises(ValueError, match=r"x\.tar\.\w+ is compressed, .* uncompress it"):
            refused()


def test_compressed_validation_shards_are_not_passed_over(tmp_path: Path) -> None:
    tar(tmp_path / "train" / NAME, members_of("a"))
    (tmp_path / "val").mkdir()
    prepare_source(SourceConfig(folder=str(tmp_path)))
    (tmp_path / "val" / "x.tgz").touch()
    with pytest.raises(ValueError, match=r"val holds no shards to validate on; .*x\.tgz is compressed"):
        prepare_source(SourceConfig(folder=str(tmp_path)))


def test_archives_joined_with_cat_are_told_from_damage(tmp_path: Path) -> None:
    one = tar(tmp_path / "one.tar", members_of("a")).read_bytes()
    (tmp_path / NAME).write_bytes(one + tar(tmp_path / "two.tar", members_of("b")).read_bytes())
    everywhere(tmp_path / NAME, "joined with tar -A, not with cat")


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("a.json", ("a",)),
        ("./a.b.JPG", ("a.b",)),
        ("d//./a.0.jpg", ("d/a.0", "d/a")),
        ("a.1.json", ("a.1",)),
        ("a.b.txt", ("a.b", "a")),
        ("d.e/a.txt", ("d.e/a",)),
        ("a", ()),
        ("d.e/a", ()),
        (".json", ()),
        ("/a.json", ()),
        ("a/../b.json", ()),
        ("..", ()),
        ("a\\b.json", ()),
        ("", ()),
    ],
)
def test_a_name_says_to_which_examples_a_member_can_belong(name: str, keys: tuple[str, ...]) -> None:
    assert possible_keys(name) == keys


def test_the_kind_is_what_follows_the_key() -> None:
    assert kind_of("./d/a.b.0.JPG", "d/a.b") == "0.jpg"
    assert kind_of("a.json", "a") == "json"


def test_a_writer_takes_names_that_a_reader_understands(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.write_members("d/my photo.v2", dict(make("my photo.v2").to_members()))
        for key in ("../a", "/a", ".a", "a\\b"):
            with pytest.raises(ValueError, match="is not named"):
                writer.write_members(key, dict(make("a").to_members()))
    assert Shard(tmp_path / "shard-000000.tar").example(0).id == "my photo.v2"
