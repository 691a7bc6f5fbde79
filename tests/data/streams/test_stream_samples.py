"""Samples of one tar file as they come: where from, damage, limits, and that nothing is decoded."""

from __future__ import annotations

import bz2
import gzip
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.faulty_server import FaultyServer, reset, short, status
from helpers.shard_cases import make, members_of, tar
from helpers.stream_cases import archives, sample, tar_bytes

from v1lit.data.errors import ShardError
from v1lit.data.remote import Retry, remote_chunks
from v1lit.data.streams import tar_bytes as stream_bytes
from v1lit.data.streams.members import Members
from v1lit.data.streams.options import StreamOptions, files_of
from v1lit.data.streams.samples import Sample, read_samples

RETRY = Retry(attempts=3, first_wait=0.01, longest_wait=0.02, timeout=5)


def read(location: object, members: Members | None = None) -> list[str]:
    """Keys of good examples, kinds of bad ones."""
    outcomes = []
    for item in read_samples(str(location), RETRY):
        try:
            if isinstance(item, ShardError):
                raise item
            outcomes.append(item.example(members).id)
        except ShardError as error:
            outcomes.append(f"{error.kind}: {error.reason}")
    return outcomes


# ------------------------------------------------------------------ where from


def test_plain_packed_and_piped_files_give_the_same(tmp_path: Path) -> None:
    (plain,) = archives(tmp_path, [3])
    packed = tmp_path / "x.tgz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    expected = ["e000", "e001", "e002"]
    assert read(plain) == expected
    assert read(packed) == expected
    assert read(f"pipe:cat {plain}") == expected
    assert read(f"pipe:cat {packed}") == expected
    assert read(f"pipe:gzip -dc {packed} | cat") == expected
    (first, *_) = read_samples(str(plain), RETRY)
    assert isinstance(first, Sample)
    assert first.example(None) == make("e000")


def test_a_server_is_read_without_a_copy_and_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    (plain,) = archives(tmp_path, [4])
    with FaultyServer() as server:
        server.files["a.tar"] = plain.read_bytes()
        server.faults["a.tar"] = [status(503)]
        assert read(server.url("a.tar")) == [f"e{n:03}" for n in range(4)]
        chunks: list[bytes] = []
        server.arrived = lambda: sum(map(len, chunks))
        server.faults["a.tar"] = [reset(after=3000), status(503), short(after=700)]
        server.requests.clear()
        for chunk in remote_chunks(server.url("a.tar"), RETRY):
            chunks.append(chunk)
        assert b"".join(chunks) == plain.read_bytes()
        assert server.ranges("a.tar") == [None, "bytes=3000-", "bytes=3000-", "bytes=3700-"]
        with pytest.raises(ShardError, match="404") as error:
            read(server.url("none.tar"))
        assert error.value.kind == "unreachable"
        server.always["a.tar"] = status(503)
        with pytest.raises(ShardError, match="not read in 3 attempts"):
            read(server.url("a.tar"))


def test_locations_are_braces_globs_folders_and_several(tmp_path: Path) -> None:
    archives(tmp_path / "a", [1, 1])
    archives(tmp_path / "b", [1], ".tar.gz")
    a, b = [str(tmp_path / "a" / f"s{n}.tar") for n in (0, 1)], str(tmp_path / "b" / "s0.tar.gz")
    assert files_of(str(tmp_path / "a"), RETRY) == a
    assert files_of(f"{tmp_path}/a/s*.tar", RETRY) == a
    assert files_of(str(tmp_path / "b"), RETRY) == [b]
    assert files_of(f"{tmp_path}/a/s{{0..1}}.tar", RETRY) == a
    assert files_of("https://host/{a,b}.tar", RETRY) == ["https://host/a.tar", "https://host/b.tar"]
    assert files_of("pipe:awk '{print $1}' ${X}-{0..1}", RETRY) == [
        "pipe:awk '{print $1}' ${X}-0", "pipe:awk '{print $1}' ${X}-1",
    ]  # fmt: skip
    for path, told in ((f"{tmp_path}/c*", "nothing matches"), (str(tmp_path), "holds no .tar")):
        with pytest.raises(ValueError, match=told):
            files_of(path, RETRY)
    with pytest.raises(ValueError, match="2 times"):
        files_of("pipe:cat {a,a}", RETRY)


# ------------------------------------------------------------------ commands


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("cat {tar}; exit 3", "exit code 3"),
        ("head -c 3000 {tar}; exit 1", "exit code 1"),
        ("no-such-command-anywhere", "exit code 127"),
        ("kill -9 $$", "signal 9"),
        ("true", "no bytes at all"),
    ],
)
def test_a_command_that_fails_is_an_error_and_no_end(
    tmp_path: Path, command: str, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (path,) = archives(tmp_path, [2])
    with pytest.raises(ShardError, match=told) as error:
        read("pipe:" + command.format(tar=path))
    assert error.value.kind == "unreachable"


def test_a_command_that_is_not_read_to_its_end_is_ended(tmp_path: Path) -> None:
    (path,) = archives(tmp_path, [2])
    noted = tmp_path / "pid"
    samples = read_samples(f"pipe:echo $$ > {noted}; cat {path}; sleep 60", RETRY)
    next(samples)
    process = int(noted.read_text())
    begun = time.monotonic()
    samples.close()
    assert time.monotonic() - begun < 20
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_only_the_recipe_names_commands(tmp_path: Path) -> None:
    """A member that is called like a command is a member."""
    touched = tmp_path / "touched"
    tar(tmp_path / "s.tar", [(f"pipe:touch {touched}.json", b"{}"), *members_of("a")])
    assert read(tmp_path / "s.tar")[-1] == "a"
    assert not touched.exists()


# ------------------------------------------------------------------ damage


def damaged(data: bytes) -> dict[str, tuple[bytes, str]]:
    """Bytes that are wrong in some way, and what is said."""
    cut = data[: len(data) // 4 // 512 * 512 + 100]
    return {
        "cut off": (cut, "damaged or cut off"),
        "no end": (
            data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512),
            "damaged or cut off",
        ),
        "no tar": (b"no tar at all" * 500, "damaged or cut off"),
        "two": (data + data, "more data follow the end"),
        "gzip cut off": (gzip.compress(data)[:-40], "damaged or cut off"),
        "gzip damaged": (gzip.compress(data)[:-200] + bytes(200), "damaged or cut off"),
        "gzip twice": (gzip.compress(gzip.compress(data)), "compressed with gzip twice"),
        "bzip2": (bz2.compress(data), "compressed with bzip2; unpack it with a command"),
    }


@pytest.mark.parametrize("kind", list(damaged(b"x" * 5000)))
@pytest.mark.parametrize("piped", [False, True])
def test_damage_is_told_once_behind_what_could_be_read(tmp_path: Path, kind: str, piped: bool) -> None:
    data, told = damaged(tar_bytes([member for n in range(4) for member in members_of(f"e{n}")]))[kind]
    path = tmp_path / "s.tar"
    path.write_bytes(data)
    *good, last = read(f"pipe:cat {path}" if piped else path)
    assert last.startswith("shard: ")
    assert told in last
    assert last.endswith("; the rest is left out")
    assert all(outcome.startswith(("e", "member: ")) for outcome in good)


def test_what_is_wrong_with_one_sample_leaves_the_others(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "s.tar",
        [
            *members_of("a"),
            *members_of("b")[:1],
            *members_of("c"),
            ("c.JPG", b"again"),
            *sample("d", {"id": "d"}),
            ("e.json", b"{"),
            *members_of("f"),
        ],
    )
    a, b, c, d, e, f = read(path)
    assert (a, f) == ("a", "f")
    assert b.startswith("member: the member 'jpg'") or "missing" in b
    assert c.startswith("member: c.JPG: duplicate file name")
    assert d.startswith("invalid: ")
    assert e.startswith("invalid: not JSON")


def test_members_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v1lit.data.shards.member.MAX_JSON_BYTES", 2000)
    big = [("b.json", b" " * 2001), *members_of("b")[1:]]
    path = tar(tmp_path / "s.tar", [*members_of("a"), *big, *members_of("c")])
    a, b, c = read(path)
    assert (a, c) == ("a", "c")
    assert b == "member: the member 'json' has 2001 bytes, the limit is 2000"
    monkeypatch.setattr(stream_bytes, "MAX_EXAMPLE_BYTES", 10_000)
    path = tar(tmp_path / "t.tar", [*members_of("a"), ("b.jpg", bytes(10**6)), *members_of("c")])
    assert read(path) == [
        "a",
        "member: a member, or its headers, of more than 10000 bytes; the rest is left out",
    ]


def test_a_packed_file_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pax header that claims a gigabyte and packs well."""
    monkeypatch.setattr(stream_bytes, "MAX_EXAMPLE_BYTES", 100_000)
    header = bytearray(tar_bytes([("x", b"")])[:512])
    header[124:136] = b"%011o\0" % (10**9)
    header[156:157] = b"x"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "s.tar.gz"
    path.write_bytes(gzip.compress(bytes(header) + bytes(5 * 10**6)))
    assert read(path) == ["member: a member, or its headers, of more than 100000 bytes; the rest is left out"]


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["pyd", "pickle", "pkl", "pth", "npy", "npz", "ten", "cls", "json"])
def test_nothing_is_unpickled(tmp_path: Path, kind: str) -> None:
    touched = tmp_path / "touched"
    bomb = pickle.dumps(Bomb(str(touched)))
    path = tar(tmp_path / "s.tar", [*sample("a", txt="A cup."), (f"a.{kind}", bomb)])
    mapped = Members.read({"reply": "txt"})
    assert read(path, mapped) == ["a"], "what is not named is not looked at"
    read(path)
    read(path, Members.read({"reply": kind}))
    assert not touched.exists()


# ------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"path": None}, "needs data.source.path"),
        ({"options": {"shuffle": -1}}, "shuffle is -1"),
        ({"options": {"shuffle": True}}, "shuffle is True"),
        ({"options": {"val_path": "x.tar"}, "val": "shards"}, "not both"),
        (
            {"options": {"members": {"reply": "txt", "picture": "jpg"}}},
            "members.picture is 'jpg'; no such option",
        ),
    ],
)
def test_options_are_checked(change: dict[str, Any], told: str) -> None:
    from v1lit.data.config import SourceConfig

    with pytest.raises(ValueError, match=told):
        StreamOptions.read(SourceConfig(**{"name": "webdataset", "path": "x.tar", **change}))
