"""`check` finds whatever can be wrong with shards, says where and what to do, and finds nothing else."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.faulty_server import FaultyServer, status
from helpers.shard_cases import index_of, jpeg, make, members_of, tar, write
from PIL import Image

from v1lit.data.shards import index_shards, sidecar_name
from v1lit.data.shards.scan import Scan
from v1lit.data.tools import check as check_module
from v1lit.data.tools import examine as examine_module
from v1lit.data.tools.check import FINDING_KINDS, CheckReport, check
from v1lit.data.tools.find import Finding

FIRST, SECOND = "shard-000000.tar", "shard-000001.tar"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards with a, b and c, d."""
    return write(tmp_path / "shards", ["a", "b", "c", "d"], max_examples=2)


def look(*locations: Path | str, **options: object) -> CheckReport:
    return check([str(location) for location in locations], workers=1, **options)


def only(report: CheckReport) -> Finding:
    """The one thing that is wrong."""
    assert [finding.kind for finding in report.first] == list(report.kinds.elements())
    assert len(report.first) == 1, report.first
    return report.first[0]


def change(path: Path, old: bytes, new: bytes) -> None:
    """Change bytes in a file; there must be such bytes."""
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def indexed(folder: Path, members: list[tuple[str, bytes]], **attributes: object) -> Path:
    """A folder with a good shard and one with these members, and an index made by the tool."""
    tar(folder / FIRST, [*members_of("a"), *members_of("b")])
    tar(folder / SECOND, members, **attributes)
    index_shards(str(folder), workers=1)
    return folder


# --- nothing wrong ---


@pytest.mark.parametrize("workers", [1, 2])
def test_good_shards_pass_and_are_counted(folder: Path, workers: int) -> None:
    report = check([str(folder)], workers=workers)
    assert report.passed, report.first
    assert not report.first
    assert not report.without_index
    assert (report.shards, report.examples, report.images, report.regions) == (2, 4, 4, 4)
    assert report.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))


def test_shards_without_an_index_are_checked_too(folder: Path) -> None:
    (folder / "index.json").unlink()
    for sidecar in folder.glob("*.safetensors"):
        sidecar.unlink()
    report = look(folder)
    assert report.passed
    assert report.examples == 4
    assert report.without_index == [str(folder)]


def test_a_file_or_pattern_is_compared_with_the_index_beside_it(folder: Path) -> None:
    report = look(folder / FIRST)
    assert report.passed
    assert report.examples == 2
    assert not report.without_index
    change(folder / FIRST, b"Where?", b"Where!")
    assert look(folder / "shard-*.tar").kinds["checksum"] > 0


def test_an_index_of_files_elsewhere_is_followed(folder: Path, tmp_path: Path) -> None:
    foreign, index = tmp_path / "foreign", tmp_path / "index"
    foreign.mkdir()
    for name in (FIRST, SECOND):
        shutil.copy(folder / name, foreign)
    index_shards(str(foreign / "*.tar"), str(index), workers=1)
    assert look(index).passed
    change(foreign / SECOND, b"Where?", b"Where!")
    assert {finding.key for finding in look(index).first} == {None, "c", "d"}


def test_a_shard_that_two_locations_name_is_checked_once(folder: Path) -> None:
    report = look(folder, folder / FIRST, os.path.relpath(folder))
    assert report.passed
    assert report.shards == 2


def test_a_check_leaves_the_folder_and_the_temporary_one_as_they_were(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert look(folder).passed
    assert not list(scratch.iterdir())
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


# --- shards and their index ---


def cut_off(folder: Path) -> None:
    os.truncate(folder / SECOND, 2048)


def shorten_the_end(folder: Path) -> None:
    os.truncate(folder / SECOND, int(index_of(folder / SECOND).offsets[-1]))


def change_an_image(folder: Path) -> None:
    change(folder / SECOND, jpeg(0)[-40:], bytes(40))


def delete_a_shard(folder: Path) -> None:
    (folder / SECOND).unlink()


def add_a_shard(folder: Path) -> None:
    tar(folder / "shard-000002.tar", members_of("e"))


def delete_a_sidecar(folder: Path) -> None:
    (folder / sidecar_name(SECOND)).unlink()


def damage_a_sidecar(folder: Path) -> None:
    (folder / sidecar_name(SECOND)).write_bytes(b"no safetensors")


def exchange_a_sidecar(folder: Path) -> None:
    shutil.copy(folder / sidecar_name(FIRST), folder / sidecar_name(SECOND))


def damage_the_index(folder: Path) -> None:
    (folder / "index.json").write_text("{")


def count_wrongly(folder: Path) -> None:
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace('"regions": 2', '"regions": 3'))


Damage = Callable[[Path], None]


@pytest.mark.parametrize(
    ("damage", "kinds", "words"),
    [
        (
            cut_off,
            ["checksum", "shard", "member"],
            ["2048 bytes", "get the shard again", "1 examples can be found"],
        ),
        (shorten_the_end, ["checksum", "shard"], ["the end of the archive is missing"]),
        (
            change_an_image,
            ["checksum", "checksum", "checksum", "image", "image"],
            ["SHA-256", "example 'c'", "example 'd'"],
        ),
        (delete_a_shard, ["missing"], ["get it again", "`v1lit data index`"]),
        (add_a_shard, ["unlisted"], ["shard-000002.tar", "`v1lit data index`"]),
        (delete_a_sidecar, ["index"], ["cannot be read", "`v1lit data index`"]),
        (damage_a_sidecar, ["index"], ["cannot be used", "`v1lit data index`"]),
        (exchange_a_sidecar, ["index", "index"], ["another checksum", "`v1lit data index`"]),
        (damage_the_index, ["index"], ["is damaged", "`v1lit data index`"]),
        (count_wrongly, ["index", "index"], ["says 3 regions", "holds 2", "`v1lit data index`"]),
    ],
)
def test_damage_is_found_and_what_to_do_is_said(
    folder: Path, damage: Damage, kinds: list[str], words: list[str]
) -> None:
    damage(folder)
    report = look(folder)
    assert [finding.kind for finding in report.first] == kinds
    said = "\n".join(map(str, report.first))
    for word in words:
        assert word in said
    if damage not in (add_a_shard, damage_the_index, count_wrongly):
        assert f"{SECOND}" in said
        assert f"{FIRST}" not in said, "the other shard is good"
    assert report.examples >= 2, "the rest is checked all the same"


def test_one_bad_shard_hides_no_other(folder: Path) -> None:
    cut_off(folder)
    change(folder / FIRST, b"Where?", b"Where!")
    assert {finding.shard for finding in look(folder).first} == {str(folder / FIRST), str(folder / SECOND)}


def test_a_shard_of_another_program_says_so(folder: Path) -> None:
    (folder / SECOND).write_bytes(b"\x1f\x8b" + bytes(5000))
    assert "not a complete, uncompressed tar file" in "\n".join(map(str, look(folder).first))


# --- examples ---


def png_of(size: tuple[int, int]) -> bytes:
    """A PNG whose header claims another size."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def record(**changes: object) -> bytes:
    return json.dumps({**json.loads(make("x").to_members()["json"]), **changes}).encode()


JSON, JPG = ("x.json", record()), ("x.jpg", jpeg(0))
BAD_EXAMPLES: dict[str, tuple[list[tuple[str, bytes]], str, str]] = {
    "cut-off image": ([JSON, ("x.jpg", jpeg(0)[:-6])], "image", "damaged or cut off"),
    "no image": ([JSON, ("x.jpg", b"nothing")], "image", "not a readable"),
    "too many pixels": (
        [
            ("x.json", record(images=[{"file_ext": "png", "size": [60000, 60000]}])),
            ("x.png", png_of((60000, 60000))),
        ],
        "image",
        "pixels",
    ),
    "missing image": ([JSON], "member", "missing"),
    "missing json": ([JPG], "member", "json member is missing"),
    "superfluous member": ([JSON, JPG, ("x.1.jpg", jpeg(0))], "member", "does not mention"),
    "unknown kind": ([JSON, JPG, ("x.pyd", b"")], "member", "no known kind"),
    "not json": ([("x.json", b"{"), JPG], "invalid", "not JSON"),
    "a rule is broken": ([("x.json", record(messages=[])), JPG], "invalid", "turns must be"),
    "other id": ([("x.json", record(id="y")), JPG], "invalid", "'y'"),
}


@pytest.mark.parametrize("case", BAD_EXAMPLES)
def test_a_bad_example_is_found_by_key_and_kind(tmp_path: Path, case: str) -> None:
    members, kind, words = BAD_EXAMPLES[case]
    report = look(indexed(tmp_path, members))
    finding = only(report)
    assert (finding.kind, finding.key) == (kind, "x")
    assert finding.shard == str(tmp_path / SECOND)
    assert words in finding.reason


def test_links_and_folders_are_found(tmp_path: Path) -> None:
    finding = only(look(indexed(tmp_path, [("x.json", b"")], type=tarfile.SYMTYPE, linkname="/etc/passwd")))
    assert (finding.kind, finding.key) == ("member", "x")
    assert "link" in finding.reason


def test_members_of_no_example_are_found(tmp_path: Path) -> None:
    finding = only(look(indexed(tmp_path, [*members_of("c"), ("../x.json", b"{}")])))
    assert finding.kind == "member"
    assert "../x.json" in finding.reason


def test_without_decoding_only_headers_of_images_are_read(tmp_path: Path) -> None:
    members, _, _ = BAD_EXAMPLES["cut-off image"]
    report = look(indexed(tmp_path, members), decode=False)
    assert report.passed
    assert not report.decoded


def test_every_kind_of_finding_is_known(tmp_path: Path) -> None:
    from v1lit.cli.data_check import MEANINGS

    assert set(MEANINGS) | {"length", "slow"} == set(FINDING_KINDS)


# --- ids ---


def test_an_id_in_two_shards_is_found_with_both_places(tmp_path: Path) -> None:
    one = write(tmp_path / "one", ["a", "b", "same"], max_examples=2)
    other = write(tmp_path / "other", ["c", "same"])
    finding = only(look(one, other))
    assert (finding.kind, finding.key, finding.shard) == ("duplicate", "same", str(other / FIRST))
    assert f"number 0 of {one / SECOND}" in finding.reason
    assert look(one).passed
    assert look(other).passed


def test_an_id_that_occurs_again_in_its_shard_is_found_once(tmp_path: Path) -> None:
    finding = only(look(indexed(tmp_path, [*members_of("c"), *members_of("d"), *members_of("c")])))
    assert finding.key == "c"
    assert "twice" in finding.reason


def test_of_very_many_repeated_ids_the_rest_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_module, "NAMED_REPEATS", 2)
    ids = ["a", "b", "c", "d", "e"]
    report = look(write(tmp_path / "one", ids), write(tmp_path / "other", ids))
    assert [finding.key is None for finding in report.first] == [False, False, True]
    assert "3 more" in report.first[-1].reason


# --- reporting ---


def test_the_file_has_all_findings_and_the_report_the_first(tmp_path: Path) -> None:
    ids = [f"id{number}" for number in range(30)]
    one, other, out = (
        write(tmp_path / "one", ids),
        write(tmp_path / "other", ids),
        tmp_path / "deep" / "p.jsonl",
    )
    report = look(one, other, out=out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert report.kinds == {"duplicate": 30}
    assert len(report.first) == 20
    assert [line["key"] for line in lines] == ids
    assert set(lines[0]) == {"shard", "key", "kind", "reason"}
    assert list(out.parent.iterdir()) == [out]


def test_a_check_that_fails_leaves_an_older_file_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.jsonl"
    out.write_text("older")
    monkeypatch.setattr(check_module, "examine", lambda *task: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        look(folder, out=out)
    assert out.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl", "shards"]


def test_findings_come_in_the_order_of_the_shards(folder: Path) -> None:
    for name in (FIRST, SECOND):
        change(folder / name, b"Where?", b"Where!")
    one, two = (check([str(folder)], workers=workers).first for workers in (1, 2))
    assert one == two
    assert [finding.key for finding in one] == [None, "a", "b", None, "c", "d"]


@pytest.mark.parametrize(
    ("locations", "workers", "words"),
    [
        ([], 1, "no location"),
        (["nowhere"], 1, "nowhere"),
        (["no-*.tar"], 1, "no-*.tar"),
        (["."], 1, "holds no shards"),
        (["shards"], 0, "workers is 0"),
    ],
)
def test_mistakes_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, locations: list[str], workers: int, words: str
) -> None:
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ValueError, match=words.replace("*", r"\*")):
        check(locations, workers=workers)


def test_folders_inside_are_suggested(folder: Path) -> None:
    with pytest.raises(ValueError, match="shards inside of it hold some"):
        look(folder.parent)


def test_checking_needs_no_torch() -> None:
    code = "import sys, v1lit.data.tools.check, v1lit.data.tools.reshard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- elsewhere ---


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        for path in folder.iterdir():
            server.files[f"shards/{path.name}"] = path.read_bytes()
        yield server


def test_shards_on_a_server_are_checked(server: FaultyServer) -> None:
    assert look(server.url("shards")).passed
    report = look(server.url("shards/shard-{000000..000001}.tar"))
    assert report.passed
    assert report.examples == 4


def test_a_shard_missing_on_a_server_is_found(server: FaultyServer) -> None:
    del server.files[f"shards/{SECOND}"]
    finding = only(look(server.url("shards")))
    assert finding.kind == "missing"
    assert "`v1lit data index`" in finding.reason


def test_a_shard_that_cannot_be_fetched_is_found(server: FaultyServer) -> None:
    server.always[f"shards/{SECOND}"] = status(403)
    finding = only(look(server.url("shards")))
    assert (finding.kind, finding.shard) == ("unreachable", server.url(f"shards/{SECOND}"))


def test_a_shard_changed_on_a_server_is_found(server: FaultyServer) -> None:
    data = server.files[f"shards/{SECOND}"]
    server.files[f"shards/{SECOND}"] = data.replace(b"Where?", b"Where!")
    assert [finding.key for finding in look(server.url("shards")).first] == [None, "c", "d"]


def test_a_file_that_vanishes_from_the_cache_is_fetched_again(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[Path] = []
    scan = examine_module.scan_file

    def delete_and_scan(path: Path) -> Scan:
        scanned.append(path)
        if len(scanned) == 1:
            path.unlink()
        return scan(path)

    monkeypatch.setattr(examine_module, "scan_file", delete_and_scan)
    assert look(server.url("shards")).passed
    assert len(scanned) == 3


def test_a_signed_shard_is_a_file_though_its_index_is_refused(server: FaultyServer) -> None:
    server.always["shards/index.json?sig=x/y"] = status(403)
    report = look(server.url(f"shards/{FIRST}?sig=x/y"))
    assert report.examples == 2
    assert not report.first


def test_a_folder_that_a_server_does_not_list_is_explained(server: FaultyServer) -> None:
    del server.files["shards/index.json"]
    with pytest.raises(ValueError, match="pattern such as"):
        look(server.url("shards"))
