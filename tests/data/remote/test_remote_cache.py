"""The cache: what it hands out is whole and right, within its limit, whatever was left behind or changed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import faulty_server as faults
from helpers.faulty_server import FaultyServer
from hypothesis import given
from hypothesis import strategies as st

from v1lit.data.remote import CacheError, RemoteError, Retry, ShardCache
from v1lit.data.remote.cache import name_of
from v1lit.data.remote.download import PartialFile

QUICK = Retry(attempts=3, first_wait=0.001, longest_wait=0.002, timeout=5)
SIZE = 10_000
FILES = {f"{name}.tar": random.Random(name).randbytes(SIZE) for name in "abcdef"}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        server.files.update(FILES)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cache_of(folder: Path, max_bytes: int = 10**6, retry: Retry = QUICK) -> ShardCache:
    return ShardCache(folder, max_bytes, retry)


def used(folder: Path) -> int:
    return sum(path.stat().st_size for part in ("files", "parts") for path in (folder / part).iterdir())


def age(path: Path, seconds: int) -> None:
    os.utime(path, (1_000_000_000 - seconds,) * 2)


def test_a_local_location_comes_back_as_it_is(folder: Path) -> None:
    assert cache_of(folder).fetch("some/where.tar") == Path("some/where.tar")


def test_a_file_is_downloaded_once(server: FaultyServer, folder: Path) -> None:
    cache, url = cache_of(folder), server.url("a.tar")
    path = cache.fetch(url, SIZE, sha(FILES["a.tar"]))
    assert path.read_bytes() == FILES["a.tar"]
    assert path.name.endswith("-a.tar")
    for again in (cache, cache_of(folder), pickle.loads(pickle.dumps(cache))):
        for expected in ((), (SIZE,), (None, sha(FILES["a.tar"])), (SIZE, sha(FILES["a.tar"]).upper())):
            if again is cache or expected:
                assert again.fetch(url, *expected) == path
    assert len(server.requests) == 1
    assert list((folder / "parts").iterdir()) == []


def test_an_unknown_file_is_asked_about_once_per_process(server: FaultyServer, folder: Path) -> None:
    url = server.url("a.tar")
    cache_of(folder).fetch(url)
    later = cache_of(folder)
    later.fetch(url)
    later.fetch(url)
    assert server.ranges("a.tar") == [None, "bytes=0-0"]


@pytest.mark.parametrize("plain", [False, True])
def test_a_file_that_changed_on_the_server_is_downloaded_anew(
    server: FaultyServer, folder: Path, plain: bool
) -> None:
    url = server.url("a.tar")
    if plain:
        server.plain.add("a.tar")
    cache_of(folder).fetch(url)
    server.files["a.tar"] = new = FILES["b.tar"] + (b"+" if plain else b"")
    assert cache_of(folder).fetch(url).read_bytes() == new
    assert cache_of(folder).fetch(url).read_bytes() == new
    assert server.statuses("a.tar").count(200) == 2


def test_a_file_that_is_gone_from_the_server_is_an_error_unless_it_is_known(
    server: FaultyServer, folder: Path
) -> None:
    url = server.url("a.tar")
    cache_of(folder).fetch(url)
    del server.files["a.tar"]
    assert cache_of(folder).fetch(url, sha256=sha(FILES["a.tar"])).exists()
    with pytest.raises(RemoteError, match="status 404"):
        cache_of(folder).fetch(url)


def test_another_sha_than_that_of_the_copy_makes_a_download(server: FaultyServer, folder: Path) -> None:
    url = server.url("a.tar")
    cache = cache_of(folder)
    cache.fetch(url, SIZE, sha(FILES["a.tar"]))
    server.files["a.tar"] = FILES["b.tar"]
    assert cache.fetch(url, SIZE, sha(FILES["b.tar"])).read_bytes() == FILES["b.tar"]
    with pytest.raises(RemoteError) as error:
        cache.fetch(url, SIZE, sha(FILES["c.tar"]))
    assert error.value.kind == "checksum"
    assert cache.fetch(url, SIZE, sha(FILES["b.tar"])).read_bytes() == FILES["b.tar"]


@pytest.mark.parametrize("damage", ["cut", "longer", "gone", "no note", "bad note", "replaced"])
def test_a_damaged_copy_is_never_handed_out(server: FaultyServer, folder: Path, damage: str) -> None:
    url = server.url("a.tar")
    path = cache_of(folder).fetch(url)
    note = folder / "notes" / path.name
    if damage == "cut":
        os.truncate(path, SIZE - 1)
    elif damage == "longer":
        path.write_bytes(FILES["a.tar"] + b"x")
    elif damage == "gone":
        path.unlink()
    elif damage == "no note":
        note.unlink()
    elif damage == "bad note":
        note.write_text('{"size": "many"')
    else:  # Another file of the same size, moved to its place.
        (folder / "x").write_bytes(FILES["b.tar"])
        (folder / "x").rename(path)
    assert cache_of(folder).fetch(url).read_bytes() == FILES["a.tar"]


def test_a_copied_cache_is_taken_over(server: FaultyServer, folder: Path, tmp_path: Path) -> None:
    url = server.url("a.tar")
    cache_of(folder).fetch(url)
    shutil.copytree(folder, tmp_path / "copy")
    path = cache_of(tmp_path / "copy").fetch(url, sha256=sha(FILES["a.tar"]))
    assert path.read_bytes() == FILES["a.tar"]
    assert len(server.requests) == 1


def test_discard_makes_the_next_fetch_a_download(server: FaultyServer, folder: Path) -> None:
    cache, url = cache_of(folder), server.url("a.tar")
    cache.fetch(url, SIZE)
    cache.discard(url)
    assert used(folder) == 0
    assert cache.fetch(url, SIZE).read_bytes() == FILES["a.tar"]
    assert len(server.requests) == 2
    cache.discard("local/file.tar")


# --- limit ---


def test_what_was_not_used_for_longest_is_deleted(server: FaultyServer, folder: Path) -> None:
    cache = cache_of(folder, 3 * SIZE)
    paths = {name: cache.fetch(server.url(name), SIZE) for name in ("a.tar", "b.tar", "c.tar")}
    for seconds, path in enumerate(paths.values()):
        age(path, 100 - seconds)
    cache.fetch(server.url("a.tar"), SIZE)  # Used again: b is the oldest now.
    cache.fetch(server.url("d.tar"), SIZE)
    assert [path.exists() for path in paths.values()] == [True, False, True]
    assert used(folder) == 3 * SIZE
    assert sorted(path.name for path in (folder / "notes").iterdir()) == sorted(
        path.name for path in (folder / "files").iterdir()
    )


@pytest.mark.parametrize("always", [faults.serve, faults.chunked()], ids=["length known", "length unknown"])
def test_the_limit_holds_at_every_moment(
    server: FaultyServer, folder: Path, always: faults.Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[PartialFile.__module__], "STEP", 1000)
    limit = 2 * SIZE + 5000
    cache = cache_of(folder, limit)
    most = 0

    write = PartialFile.write

    def watched(self: PartialFile, chunk: bytes) -> None:
        nonlocal most
        write(self, chunk)
        most = max(most, used(folder) - sum(p.stat().st_size for p in (folder / "parts").glob("*.note")))

    monkeypatch.setattr(PartialFile, "write", watched)
    for name in FILES:
        server.always[name] = always
        assert cache.fetch(server.url(name)).read_bytes() == FILES[name]
    assert SIZE < most <= limit


@pytest.mark.parametrize("size", [None, SIZE])
@pytest.mark.parametrize("always", [faults.serve, faults.chunked()], ids=["length told", "length not told"])
def test_a_file_larger_than_the_limit_is_an_error_and_leaves_nothing(
    server: FaultyServer, folder: Path, size: int | None, always: faults.Fault
) -> None:
    server.always["a.tar"] = always
    with pytest.raises(CacheError, match=r"data\.stream\.cache_gb"):
        cache_of(folder, SIZE - 1).fetch(server.url("a.tar"), size)
    assert used(folder) == 0


def test_no_limit_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.stream\.cache_gb must be above 0"):
        cache_of(folder, 0)


def test_leftovers_are_gone_on_with(server: FaultyServer, folder: Path) -> None:
    cache, url = cache_of(folder, retry=Retry(1)), server.url("a.tar")
    part = folder / "parts" / f"{name_of(url)}.part"
    server.arrived = lambda: part.stat().st_size if part.exists() else 0
    server.faults["a.tar"] = [faults.reset(after=4000)]
    with pytest.raises(RemoteError):
        cache.fetch(url)
    assert not any((folder / "files").iterdir())
    assert cache_of(folder).fetch(url).read_bytes() == FILES["a.tar"]
    assert server.ranges("a.tar") == [None, "bytes=4000-"]


def test_leftovers_count_and_are_cleared_when_room_is_needed(server: FaultyServer, folder: Path) -> None:
    cache = cache_of(folder, 2 * SIZE)
    left = folder / "parts" / f"{name_of('http://h/x.tar')}.part"
    left.write_bytes(bytes(SIZE))
    left.with_suffix(".note").write_text(json.dumps({"tag": None, "reserved": SIZE}))
    age(left, 5)
    cache.fetch(server.url("a.tar"), SIZE)
    assert left.exists()
    cache.fetch(server.url("b.tar"), SIZE)
    assert not left.exists()
    assert not left.with_suffix(".note").exists()
    assert used(folder) == 2 * SIZE


def test_a_download_under_way_is_not_cleared_and_ends_the_wait_with_an_error(
    server: FaultyServer, folder: Path
) -> None:
    from filelock import FileLock

    impatient = Retry(attempts=1, first_wait=0, longest_wait=0, timeout=0.2)
    cache = cache_of(folder, 2 * SIZE, impatient)
    name = name_of("http://h/x.tar")
    part = folder / "parts" / f"{name}.part"
    part.write_bytes(bytes(1000))
    part.with_suffix(".note").write_text(json.dumps({"tag": None, "reserved": SIZE + 1}))
    with FileLock(folder / "locks" / name), pytest.raises(CacheError, match="other downloads take up"):
        cache.fetch(server.url("a.tar"), SIZE)
    assert part.exists()
    assert cache.fetch(server.url("a.tar"), SIZE).exists()


def test_a_holder_that_does_not_get_on_ends_the_wait_with_an_error(
    server: FaultyServer, folder: Path
) -> None:
    from filelock import FileLock

    cache = cache_of(folder, retry=Retry(attempts=1, first_wait=0, longest_wait=0, timeout=0.1))
    url = server.url("a.tar")
    with FileLock(folder / "locks" / name_of(url)), pytest.raises(CacheError, match="another process"):
        cache.fetch(url)


# --- names and folder ---


@pytest.mark.parametrize(
    "url",
    [
        "http://h/../../etc/passwd",
        "http://h/..%2F..%2Fx",
        "http://h/a/..",
        "s3://b/../../x",
        "http://h/" + "x" * 5000,
        "http://h/a?x=../../y",
        "http://h/a\x00b",
        "http://h/",
    ],
)
def test_no_url_leads_out_of_the_folder(url: str) -> None:
    name = name_of(url)
    assert Path(name).name == name
    assert len(name) < 128
    assert name.isprintable()


@given(st.text(), st.text())
def test_names_are_plain_and_differ_where_urls_do(a: str, b: str) -> None:
    names = [name_of(f"http://h/{url}") for url in (a, b)]
    assert (names[0] == names[1]) == (a == b)
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        for name in names
    )


def test_other_files_in_the_folder_are_left_alone(server: FaultyServer, folder: Path) -> None:
    folder.mkdir()
    (folder / "mine.tar").write_bytes(bytes(10 * SIZE))
    cache = cache_of(folder, SIZE)
    cache.fetch(server.url("a.tar"))
    cache.fetch(server.url("b.tar"))
    assert (folder / "mine.tar").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"cannot be written.*data\.stream\.cache"):
        cache_of(tmp_path / "file" / "cache")
