"""Downloads: whatever a server does, a file is complete and right, or there is an error that says why."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import faulty_server as faults
from helpers.faulty_server import FaultyServer

from v1lit.data.errors import ShardError
from v1lit.data.remote import CacheError, RemoteError, Retry, download
from v1lit.data.remote.download import PartialFile

pytestmark = pytest.mark.dependencies

QUICK = Retry(attempts=4, first_wait=0.001, longest_wait=0.002, timeout=5)
HASTY = Retry(attempts=3, first_wait=0.001, longest_wait=0.002, timeout=0.3)
DATA = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        server.files["a.tar"] = DATA
        yield server


def part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def watch(server: FaultyServer, path: Path) -> None:
    """Let faults wait until the bytes before them are on the disk."""
    part = part_of(path)
    server.arrived = lambda: part.stat().st_size if part.exists() else 0


def leftovers(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if file != path)


def test_a_file_arrives_whole(server: FaultyServer, tmp_path: Path) -> None:
    done = download(server.url("a.tar"), tmp_path / "a.tar", retry=QUICK)
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert (done.bytes, done.sha256, done.tag) == (len(DATA), SHA, faults.etag(DATA))
    assert leftovers(tmp_path / "a.tar") == []


def test_an_empty_file_arrives(server: FaultyServer, tmp_path: Path) -> None:
    server.files["empty"] = b""
    assert download(server.url("empty"), tmp_path / "empty", size=0, retry=QUICK).bytes == 0
    assert (tmp_path / "empty").read_bytes() == b""


def test_after_a_reset_only_the_rest_is_asked_for(server: FaultyServer, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    watch(server, path)
    server.faults["a.tar"] = [faults.reset(after=100_000), faults.reset(after=50_000)]
    download(server.url("a.tar"), path, sha256=SHA, retry=QUICK)
    assert path.read_bytes() == DATA
    assert server.ranges("a.tar") == [None, "bytes=100000-", "bytes=150000-"]
    assert server.requests[1].if_range == faults.etag(DATA)


@pytest.mark.parametrize("known", ["nothing", "size", "sha256", "both"])
@pytest.mark.parametrize(
    "fault",
    [
        faults.hang_up,
        faults.status(500),
        faults.status(503, Retry_After="0"),
        faults.status(429),
        faults.status(408),
        faults.reset(after=0),
        faults.reset(after=1000),
        faults.short(after=0),
        faults.short(after=299_999),
        faults.wrong_range(7),
        faults.unplaced,
        faults.chunked(),
        faults.chunked(upto=5000),
        faults.status(416),
    ],
)
def test_one_fault_leaves_no_trace(
    server: FaultyServer, tmp_path: Path, fault: faults.Fault, known: str
) -> None:
    path = tmp_path / "a.tar"
    watch(server, path)
    server.arrived = lambda: 10**9  # Whether or not the bytes before the fault were taken in.
    server.faults["a.tar"] = [fault]
    size = len(DATA) if known in ("size", "both") else None
    sha256 = SHA if known in ("sha256", "both") else None
    assert download(server.url("a.tar"), path, size, sha256, QUICK).sha256 == SHA
    assert path.read_bytes() == DATA
    assert leftovers(path) == []


@pytest.mark.parametrize("shift", [-1000, 1000])
def test_a_wrong_range_in_answer_to_a_resume_is_thrown_away(
    server: FaultyServer, tmp_path: Path, shift: int
) -> None:
    path = tmp_path / "a.tar"
    watch(server, path)
    server.faults["a.tar"] = [faults.reset(after=100_000), faults.wrong_range(shift)]
    download(server.url("a.tar"), path, retry=QUICK)
    assert path.read_bytes() == DATA
    assert server.ranges("a.tar") == [None, "bytes=100000-", None]


def test_a_server_that_ignores_ranges_starts_again_in_the_same_answer(
    server: FaultyServer, tmp_path: Path
) -> None:
    path = tmp_path / "a.tar"
    watch(server, path)
    server.no_ranges.add("a.tar")
    server.faults["a.tar"] = [faults.reset(after=100_000)]
    download(server.url("a.tar"), path, retry=QUICK)
    assert path.read_bytes() == DATA
    assert server.statuses("a.tar") == [200, 200]


def test_a_slow_answer_ends_in_time_and_is_gone_on_with(server: FaultyServer, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    server.faults["a.tar"] = [faults.stall(after=100_000)]
    download(server.url("a.tar"), path, retry=HASTY)
    assert path.read_bytes() == DATA
    assert server.ranges("a.tar") == [None, "bytes=100000-"]


def test_a_server_that_never_answers_is_an_error(server: FaultyServer, tmp_path: Path) -> None:
    server.always["a.tar"] = faults.stall(after=0)
    with pytest.raises(RemoteError, match=r"not read in 3 attempts.*no answer in time") as error:
        download(server.url("a.tar"), tmp_path / "a.tar", retry=HASTY)
    assert (error.value.attempts, error.value.kind, error.value.status) == (3, "unreachable", None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_replaced_between_attempts_is_not_mixed(server: FaultyServer, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    watch(server, path)
    new = DATA[::-1]

    def replaced(handler: faults.Handler, _: bytes | None) -> None:
        server.files["a.tar"] = new
        faults.serve(handler, new)

    server.faults["a.tar"] = [faults.reset(after=100_000), replaced]
    download(server.url("a.tar"), path, retry=QUICK)
    assert path.read_bytes() == new


def test_without_tag_and_sha_nothing_is_resumed(server: FaultyServer, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    watch(server, path)
    server.plain.add("a.tar")
    server.faults["a.tar"] = [faults.reset(after=100_000), faults.other(DATA[::-1])]
    download(server.url("a.tar"), path, size=len(DATA), retry=QUICK)
    assert server.ranges("a.tar") == [None, None]
    assert path.read_bytes() == DATA[::-1]


def test_without_tag_a_known_sha_allows_to_resume(server: FaultyServer, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    watch(server, path)
    server.plain.add("a.tar")
    server.faults["a.tar"] = [faults.reset(after=100_000)]
    download(server.url("a.tar"), path, sha256=SHA, retry=QUICK)
    assert server.ranges("a.tar") == [None, "bytes=100000-"]
    assert path.read_bytes() == DATA


WRONG = {
    "other bytes": DATA[::-1],
    "one bit": DATA[:-1] + bytes([DATA[-1] ^ 1]),
    "too short": DATA[:-1],
    "too long": DATA + b"0",
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_wrong_content_is_asked_for_once_more(server: FaultyServer, tmp_path: Path, content: bytes) -> None:
    server.faults["a.tar"] = [faults.other(content)]
    download(server.url("a.tar"), tmp_path / "a.tar", len(DATA), SHA, QUICK)
    assert (tmp_path / "a.tar").read_bytes() == DATA


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_wrong_content_twice_is_an_error_of_kind_checksum(
    server: FaultyServer, tmp_path: Path, content: bytes
) -> None:
    server.files["a.tar"] = content
    with pytest.raises(RemoteError, match=r"2 attempts.*expected") as error:
        download(server.url("a.tar"), tmp_path / "a.tar", len(DATA), SHA, QUICK)
    assert error.value.kind == "checksum"
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 2


def test_too_many_bytes_end_a_download_at_once(server: FaultyServer, tmp_path: Path) -> None:
    server.files["a.tar"] = DATA * 100
    server.always["a.tar"] = faults.chunked()
    with pytest.raises(RemoteError, match="more than the 300000 bytes expected") as error:
        download(server.url("a.tar"), tmp_path / "a.tar", len(DATA), None, QUICK)
    assert error.value.kind == "checksum"


@pytest.mark.parametrize("upto", [None, 1000])
def test_what_has_no_known_length_is_refused(server: FaultyServer, tmp_path: Path, upto: int | None) -> None:
    server.always["a.tar"] = faults.unframed(upto)
    with pytest.raises(RemoteError, match="does not say how long"):
        download(server.url("a.tar"), tmp_path / "a.tar", retry=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_length_is_taken_where_the_index_knows_it(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["a.tar"] = [faults.unframed(1000)]
    server.always["a.tar"] = faults.unframed()
    download(server.url("a.tar"), tmp_path / "a.tar", size=len(DATA), retry=QUICK)
    assert (tmp_path / "a.tar").read_bytes() == DATA


def test_an_answer_that_always_ends_early_is_no_wrong_content(server: FaultyServer, tmp_path: Path) -> None:
    server.always["a.tar"] = faults.unframed(1000)
    with pytest.raises(RemoteError, match="ended after 1000 of 300000 bytes") as error:
        download(server.url("a.tar"), tmp_path / "a.tar", len(DATA), SHA, QUICK)
    assert (error.value.kind, error.value.attempts) == ("unreachable", 4)


def test_a_compressed_answer_is_refused(server: FaultyServer, tmp_path: Path) -> None:
    server.always["a.tar"] = faults.gzipped
    with pytest.raises(RemoteError, match=r"1 attempt,.*gzip"):
        download(server.url("a.tar"), tmp_path / "a.tar", retry=QUICK)


def test_redirects_are_followed_ranges_included(server: FaultyServer, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    watch(server, path)
    server.always["moved"] = faults.redirect(server.url("a.tar"))
    server.faults["a.tar"] = [faults.reset(after=100_000)]
    download(server.url("moved"), path, retry=QUICK)
    assert path.read_bytes() == DATA
    assert server.ranges("a.tar") == [None, "bytes=100000-"]


def test_redirects_in_a_circle_end(server: FaultyServer, tmp_path: Path) -> None:
    server.always["a.tar"] = faults.redirect(server.url("a.tar"))
    with pytest.raises(RemoteError, match="TooManyRedirects"):
        download(server.url("a.tar"), tmp_path / "a.tar", retry=QUICK)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_a_refusal_ends_at_once_and_says_what_to_do(server: FaultyServer, tmp_path: Path, code: int) -> None:
    server.always["a.tar"] = faults.status(code)
    with pytest.raises(RemoteError, match=f"1 attempt, .*status {code}") as error:
        download(server.url("a.tar"), tmp_path / "a.tar", retry=QUICK)
    hint = {401: "credentials", 403: "credentials", 404: "path", 410: "path"}.get(code, "")
    assert hint in str(error.value)
    assert error.value.status == code
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_error_names_url_attempts_reason_and_recipe_keys(server: FaultyServer, tmp_path: Path) -> None:
    server.always["a.tar"] = faults.status(503)
    url = server.url("a.tar")
    with pytest.raises(RemoteError) as error:
        download(url, tmp_path / "a.tar", retry=QUICK)
    text = str(error.value)
    assert isinstance(error.value, ShardError)
    for part in (url, "4 attempts", "status 503", "data.stream.attempts", "data.stream.timeout"):
        assert part in text
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == text
    assert (again.url, again.attempts, again.last, again.status, again.kind, again.shard) == (
        url, 4, error.value.last, 503, "unreachable", url,
    )  # fmt: skip


def test_an_error_shows_no_secrets(server: FaultyServer, tmp_path: Path) -> None:
    url = server.url("a.tar?X-Signature=geheim").replace("http://", "http://me:secret@")
    server.always["a.tar?X-Signature=geheim"] = faults.status(403)
    with pytest.raises(RemoteError) as error:
        download(url, tmp_path / "a.tar", retry=QUICK)
    assert "geheim" not in str(error.value)
    assert "secret" not in str(error.value)
    assert "a.tar" in str(error.value)


def test_the_rest_of_a_killed_download_is_fetched_by_the_next(server: FaultyServer, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    watch(server, path)
    server.faults["a.tar"] = [faults.reset(after=100_000)]
    with pytest.raises(RemoteError):
        download(server.url("a.tar"), path, retry=Retry(1))
    assert not path.exists()
    download(server.url("a.tar"), path, retry=QUICK)
    assert path.read_bytes() == DATA
    assert server.ranges("a.tar") == [None, "bytes=100000-"]


def test_a_part_that_is_already_complete_is_only_verified(server: FaultyServer, tmp_path: Path) -> None:
    part_of(tmp_path / "a.tar").write_bytes(DATA)
    download(server.url("a.tar"), tmp_path / "a.tar", len(DATA), SHA, QUICK)
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert server.requests == []


@pytest.mark.parametrize("rest", [b"0" * 1000, DATA[:1000], DATA + b"0", b"0" * len(DATA)])
@pytest.mark.parametrize("note", ["", "{", "[1]", '{"tag": 3}', '{"tag": "\\"x\\""}', "[" * 10_000])
@pytest.mark.parametrize("sha256", [None, SHA])
def test_strange_leftovers_do_no_harm(
    server: FaultyServer, tmp_path: Path, rest: bytes, note: str, sha256: str | None
) -> None:
    path = tmp_path / "a.tar"
    part_of(path).write_bytes(rest)
    path.with_name(".a.tar.note").write_text(note)
    download(server.url("a.tar"), path, None, sha256, QUICK)
    assert path.read_bytes() == DATA


def test_a_full_disk_is_told_and_cleared(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: PartialFile, chunk: bytes) -> None:
        from v1lit.data.remote.download import disk_error

        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise disk_error(self.path, error)

    monkeypatch.setattr(PartialFile, "write", full)
    with pytest.raises(CacheError, match=r"disk of .* is full.*data\.stream\.cache"):
        download(server.url("a.tar"), tmp_path / "a.tar", retry=QUICK)
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_device_without_room_is_that_error(tmp_path: Path) -> None:
    part = PartialFile(tmp_path / "part", tmp_path / "note")
    part._file.close()
    part._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(CacheError, match="is full"), part:
        part.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_told(server: FaultyServer, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="cannot be written"):
        download(server.url("a.tar"), tmp_path / "no" / "a.tar", retry=QUICK)


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": 0}, {"timeout": 0}, {"timeout": float("inf")}, {"first_wait": -1}, {"first_wait": 31}],
)
def test_senseless_patience_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        Retry(**wrong)  # type: ignore[arg-type]


def test_waits_grow_with_jitter_up_to_the_longest() -> None:
    retry = Retry(attempts=20, first_wait=0.5, longest_wait=30)
    for attempt in range(1, 20):
        longest = min(30, 0.5 * 2 ** (attempt - 1))
        waits = {retry.wait(attempt) for _ in range(20)}
        assert all(longest / 2 <= wait <= longest for wait in waits)
        assert len(waits) > 1
    assert retry.patience >= 20 * 60


def test_waits_do_not_touch_the_seeded_generator() -> None:
    random.seed(3)
    state = random.getstate()
    Retry().wait(1)
    assert random.getstate() == state


def test_errors_of_our_own_are_not_retried() -> None:
    calls = []

    def wrong() -> None:
        calls.append(1)
        raise TypeError("a mistake in the program")

    with pytest.raises(TypeError):
        QUICK.run("http://x/", wrong)
    assert len(calls) == 1
