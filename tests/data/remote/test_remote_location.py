"""Locations: patterns stand for the right files, joined names stay in their folder, reading has a limit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import faulty_server as faults
from helpers.faulty_server import FaultyServer
from hypothesis import given
from hypothesis import strategies as st

from v1lit.data.errors import ShardError
from v1lit.data.remote import (
    RemoteError,
    Retry,
    exists,
    expand,
    is_open,
    is_pattern,
    is_remote,
    join,
    parent,
    read_bytes,
)

QUICK = Retry(attempts=3, first_wait=0.001, longest_wait=0.002, timeout=5)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("s-0.tar", "s-1.tar", "s-10.tar", "other.txt", "odd[1].tar", "odd{1}.tar"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "s-2.tar").write_bytes(b"2")
    return tmp_path


@pytest.mark.parametrize(
    "url", ["http://h/a", "https://h/a", "s3://b/k", "gs://b/k", "az://c/k", "hf://datasets/a/b"]
)
def test_urls_are_remote(url: str) -> None:
    assert is_remote(url)


@pytest.mark.parametrize("path", ["a.tar", "/a/b", "./a:b", "C:\\data", "a//b", "", "~/x", "://x"])
def test_paths_are_local(path: str) -> None:
    assert not is_remote(path)


def test_local_patterns_are_expanded_sorted_and_unique(folder: Path) -> None:
    def names(pattern: str) -> list[str]:
        return [str(Path(path).relative_to(folder)) for path in expand(f"{folder}/{pattern}")]

    assert names("s-*.tar") == ["s-0.tar", "s-1.tar", "s-10.tar"]
    assert names("s-{0..1}.tar") == ["s-0.tar", "s-1.tar"]
    assert names("s-{1,0,1}.tar") == ["s-0.tar", "s-1.tar"]
    assert names("{s-?,s-1*}.tar") == ["s-0.tar", "s-1.tar", "s-10.tar"]
    assert names("**/*.tar") == sorted(
        ["odd[1].tar", "odd{1}.tar", "s-0.tar", "s-1.tar", "s-10.tar", "sub/s-2.tar"]
    )
    assert names("s-1.tar") == ["s-1.tar"]
    assert expand(str(folder)) == [str(folder)]


@pytest.mark.parametrize("name", ["odd[1].tar", "odd{1}.tar"])
def test_a_file_whose_name_looks_like_a_pattern_is_found(folder: Path, name: str) -> None:
    assert expand(f"{folder}/{name}") == [f"{folder}/{name}"]


def test_brackets_of_a_folder_are_no_pattern(tmp_path: Path) -> None:
    for name in ("a[1]", "a1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.tar").touch()
    assert expand(str(tmp_path / "a[1]" / "*.tar")) == [str(tmp_path / "a[1]" / "a[1].tar")]
    assert expand(str(tmp_path / "a[12]" / "*.tar")) == [str(tmp_path / "a1" / "a1.tar")]


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("x-*.tar", "x-*.tar"),
        ("missing.tar", "missing.tar"),
        ("s-{0..2}.tar", "s-2.tar"),
        ("{s,x}-*.tar", "x-*.tar"),
    ],
)
def test_what_matches_nothing_is_named(folder: Path, pattern: str, named: str) -> None:
    with pytest.raises(ValueError, match="nothing matches") as error:
        expand(f"{folder}/{pattern}")
    assert named in str(error.value)
    assert pattern in str(error.value)


def test_braces_that_do_not_match_and_endless_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="braces do not match"):
        expand("http://h/{0..1.tar")
    with pytest.raises(ValueError, match="more than 1000000"):
        expand("http://h/{0..999}{0..999}{0..999}.tar")
    with pytest.raises(ValueError, match="more than 1000000"):
        expand("http://h/{0..99999999999}.tar")


def test_braces_of_urls_are_expanded_without_asking(server: FaultyServer) -> None:
    url = server.url("s-{08..10}.tar?token=1")
    assert expand(url, QUICK) == [server.url(f"s-{n}.tar?token=1") for n in ("08", "09", "10")]
    assert server.requests == []


def test_globs_of_a_server_that_lists_its_folder(server: FaultyServer) -> None:
    links = ("s-1.tar", "s-0.tar", "x.txt", "../s-2.tar", "http://elsewhere.invalid/s-3.tar")
    server.files["data/"] = "".join(f'<a href="{link}">.</a>' for link in links).encode()

    def listing(handler: faults.Handler, data: bytes | None) -> None:
        assert data is not None
        handler.begin(200, {"Content-Type": "text/html", "Content-Length": str(len(data))})
        handler.wfile.write(data)

    server.always["data/"] = listing
    server.faults["data/"] = [faults.status(503)]
    assert expand(server.url("data/s-*.tar"), QUICK) == [
        server.url("data/s-0.tar"),
        server.url("data/s-1.tar"),
    ]
    with pytest.raises(ValueError, match=r"nothing matches .*y-\*\.tar"):
        expand(server.url("data/y-*.tar"), QUICK)


def test_a_scheme_nobody_knows_is_named() -> None:
    for call in (lambda: read_bytes("ftp://h/a", 10), lambda: exists("ftp://h/a")):
        with pytest.raises(ValueError, match=r"ftp:// cannot be read.*s3://"):
            call()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from v1lit.data.remote import filesystem

    for scheme, package in (("s3", "s3fs"), ("gs", "gcsfs"), ("az", "adlfs")):
        filesystem.forget()
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf"pip install 'v1lit\[{scheme}\]'"):
            read_bytes(f"{scheme}://bucket/key", 10, QUICK)


@pytest.mark.parametrize(
    ("folder", "name", "joined"),
    [
        ("/data", "a.tar", "/data/a.tar"),
        ("s3://b/k", "a.tar", "s3://b/k/a.tar"),
        ("s3://b/k/", "a b#?.tar", "s3://b/k/a b#?.tar"),
        ("https://h/d", "a.tar", "https://h/d/a.tar"),
        ("https://h", "a.tar", "https://h/a.tar"),
        ("https://h/d/?token=x/y", "a.tar", "https://h/d/a.tar?token=x/y"),
        ("https://h/d", "a#b?.tar", "https://h/d/a%23b%3F.tar"),
        ("https://h/d", "*.tar", "https://h/d/*.tar"),
    ],
)
def test_names_are_joined_to_folders(folder: str, name: str, joined: str) -> None:
    assert join(folder, name) == joined


@pytest.mark.parametrize("folder", ["/data", "http://h/d", "s3://b/k"])
@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/etc/passwd", "a\\b", "a\nb", "http://x/y"])
def test_names_that_leave_the_folder_are_refused(folder: str, name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a file"):
        join(folder, name)


@given(st.text(min_size=1, max_size=20))
def test_a_joined_name_is_asked_for_as_it_is_or_refused(name: str) -> None:
    from urllib.parse import unquote

    try:
        url = join("http://h/d", name)
    except ValueError:
        return
    assert url.startswith("http://h/d/")
    assert unquote(url.removeprefix("http://h/d/")) == name
    assert not set("/?#") & set(url.removeprefix("http://h/d/"))


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("a/b.tar", "a"),
        ("/a/b.tar", "/a"),
        ("/b.tar", "/"),
        ("b.tar", "."),
        ("a?b/b.tar", "a?b"),
        ("https://h/a/b.tar", "https://h/a"),
        ("https://h/b.tar?t=1", "https://h?t=1"),
        ("https://h/a/b.tar?t=x/y&u=z", "https://h/a?t=x/y&u=z"),
        ("s3://bucket/a/b.tar", "s3://bucket/a"),
        ("s3://bucket/b.tar", "s3://bucket"),
        ("hf://datasets/o/n/b.tar", "hf://datasets/o/n"),
    ],
)
def test_the_parent_of_a_file_keeps_the_query(file: str, folder: str) -> None:
    assert parent(file) == folder
    if folder != ".":
        assert join(folder, "b.tar") == file


@pytest.mark.parametrize(
    "location",
    [
        *("a.tar", "a/*", "a/{0..1}", "s3://b/a-?.tar", "s3://b/a-[01].tar", "s3://b/a.tar"),
        *("https://h/a.tar?sig=x/y", "https://h/a-*.tar?sig=1", "https://h/{a,b}?sig=1"),
    ],
)
def test_files_and_patterns_name_shards_themselves(location: str) -> None:
    assert is_pattern(location)


@pytest.mark.parametrize("location", ["a", "a/", "s3://b/a", "https://h/a", "https://h/a?sig=a*b[.tar"])
def test_folders_do_not(location: str) -> None:
    assert not is_pattern(location)


@pytest.mark.parametrize("code", [401, 403])
def test_a_file_that_is_refused_is_not_open(server: FaultyServer, code: int) -> None:
    server.files = {"a": b"x"}
    server.always = {"b": faults.status(code), "c": faults.status(503)}
    assert is_open(server.url("a"), QUICK)
    assert not is_open(server.url("b"), QUICK)
    assert not is_open(server.url("missing"), QUICK)
    with pytest.raises(RemoteError, match="status 503"):
        is_open(server.url("c"), QUICK)


def test_whether_a_file_exists(server: FaultyServer, folder: Path) -> None:
    server.files["a"] = b"1"
    server.files["empty"] = b""
    server.faults["a"] = [faults.status(502), faults.hang_up]
    assert exists(server.url("a"), QUICK)
    assert exists(server.url("empty"), QUICK)
    assert not exists(server.url("b"), QUICK)
    assert exists(f"{folder}/s-0.tar")
    assert not exists(f"{folder}/s-9.tar")
    server.always["c"] = faults.status(403)
    with pytest.raises(RemoteError, match="credentials"):
        exists(server.url("c"), QUICK)


@pytest.mark.parametrize(
    "fault", [faults.status(503), faults.short(3), faults.reset(3), faults.hang_up, faults.chunked(3)]
)
def test_a_small_file_is_read_whole_in_spite_of_a_fault(server: FaultyServer, fault: faults.Fault) -> None:
    server.files["index.json"] = b"0123456789"
    server.faults["index.json"] = [fault]
    assert read_bytes(server.url("index.json"), 10, QUICK) == b"0123456789"


@pytest.mark.parametrize("always", [faults.serve, faults.chunked()])
def test_reading_stops_at_the_limit(server: FaultyServer, always: faults.Fault) -> None:
    server.files["index.json"] = b"0123456789" * 100_000
    server.always["index.json"] = always
    with pytest.raises(ShardError, match="larger than the 999999 bytes"):
        read_bytes(server.url("index.json"), 999_999, QUICK)
    assert len(server.requests) == 1
    assert len(read_bytes(server.url("index.json"), 1_000_000, QUICK)) == 1_000_000


def test_an_endless_answer_ends_at_the_limit(server: FaultyServer) -> None:
    def endless(handler: faults.Handler, _: bytes | None) -> None:
        handler.begin(200, {"Transfer-Encoding": "chunked"})
        while True:  # Until the client hangs up.
            handler.wfile.write(b"1000\r\n" + b"0" * 4096 + b"\r\n")

    server.always["index.json"] = endless
    with pytest.raises(ShardError, match="larger than"):
        read_bytes(server.url("index.json"), 100_000, QUICK)


def test_a_compressed_answer_is_not_unpacked(server: FaultyServer) -> None:
    server.files["index.json"] = bytes(10**7)
    server.always["index.json"] = faults.gzipped
    with pytest.raises(RemoteError, match="gzip"):
        read_bytes(server.url("index.json"), 10**8, QUICK)


def test_an_answer_that_is_no_http_is_retried(server: FaultyServer) -> None:
    def garbage(handler: faults.Handler, _: bytes | None) -> None:
        handler.note(0)
        handler.wfile.write(b"\x00\xff garbage\r\n\r\n")
        handler.close_connection = True

    server.files["a"] = b"good"
    server.faults["a"] = [garbage]
    assert read_bytes(server.url("a"), 10, QUICK) == b"good"


def test_a_host_that_cannot_be_reached_is_an_error() -> None:
    with pytest.raises(RemoteError, match="3 attempts") as error:
        read_bytes("http://127.0.0.1:1/a", 10, QUICK)
    assert error.value.kind == "unreachable"


def test_local_files_are_read_with_the_same_limit(folder: Path) -> None:
    assert read_bytes(f"{folder}/s-0.tar", 7) == b"s-0.tar"
    with pytest.raises(ShardError, match="larger than the 6 bytes"):
        read_bytes(f"{folder}/s-0.tar", 6)
    with pytest.raises(ShardError, match="cannot be read") as error:
        read_bytes(f"{folder}/none", 6)
    assert error.value.kind == "unreachable"


def test_neither_torch_nor_fsspec_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, v1lit.data.remote as r; r.expand('/'); r.read_bytes(sys.executable, 10**9);"
        "print([n for n in ('torch', 'fsspec', 'aiohttp', 's3fs', 'filelock') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("first", ["v1lit.data.remote", "v1lit.data.shards"])
def test_either_package_can_be_imported_first(first: str) -> None:
    subprocess.run([sys.executable, "-c", f"import {first}"], timeout=120, check=True)
