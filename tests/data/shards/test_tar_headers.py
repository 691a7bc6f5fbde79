"""Tar headers are read as tarfile reads them, and what a hostile one claims is never believed."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from v1lit.data.errors import DamageError
from v1lit.data.shards import tar
from v1lit.data.shards.tar import MAX_EXTENSION_BYTES, TarMember, walk

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
names = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=60)
long_names = st.builds(lambda text, times: text * times, names, st.integers(1, 20))
members = st.tuples(st.one_of(names, long_names), st.integers(0, 2000))


def archive(members: list[tuple[str, int]], format: int, **options: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=format, **options) as file:
        for name, size in members:
            info = tarfile.TarInfo(name)
            info.size = size
            file.addfile(info, io.BytesIO(b"x" * size))
    return out.getvalue()


def header(name: str = "a.json", **attributes: Any) -> bytes:
    info = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def extension(kind: bytes, content: bytes, claimed: int | None = None) -> bytes:
    size = len(content) if claimed is None else claimed
    return header("ext", type=kind, size=size) + content + bytes(-len(content) % 512)


def read_all(data: bytes) -> list[TarMember]:
    return list(walk(lambda at, size: data[at : at + size], 0, len(data)))


@given(st.lists(members, max_size=6), st.sampled_from(list(FORMATS)))
def test_members_lie_where_tarfile_finds_them(members: list[tuple[str, int]], format: str) -> None:
    try:
        data = archive(members, FORMATS[format])
    except ValueError:  # Too long a name for this format.
        return
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        expected = [(info.name, info.isreg(), info.offset, info.offset_data, info.size) for info in file]
    found = read_all(data)
    # tarfile leaves a slash at the end of some names; that no such member is read is all that counts.
    assert [(m.name, m.start, m.data, m.size) for m in found] == [
        (name.rstrip("/"), *place) for name, _, *place in expected
    ]
    assert all(
        m.plain == (regular and not name.endswith("/"))  # The name as written: tarfile strips that of PAX.
        for m, (_, regular, *_), (name, _) in zip(found, expected, members, strict=True)
    )


fields = st.sampled_from([(0, 100), (124, 136), (136, 148), (148, 156), (156, 157), (345, 500), (500, 512)])
bits = st.binary(max_size=12) | st.text("01789 -+_ox\0", max_size=12).map(str.encode)


@settings(max_examples=300)
@given(
    st.builds(header, names | st.sampled_from(["a.json", "dir/a.jpg", "a/", ""]), size=st.integers(0, 2000)),
    st.lists(st.tuples(fields, st.integers(0, 150), bits), max_size=2),
    st.booleans(),
)
@example(header(), [((148, 156), 6, b"1")], False)
def test_the_quick_way_through_a_header_leads_to_the_same_member(
    data: bytes, changes: list[tuple[tuple[int, int], int, bytes]], summed: bool
) -> None:
    changed = bytearray(data)
    for (start, end), skipped, new in changes:
        place = min(start + skipped, end - 1)
        changed[place : min(place + len(new), end)] = new[: end - place]
    if summed and len(changed) == 512:
        changed[148:156] = b" " * 8
        changed[148:156] = b"%06o\0 " % sum(changed)
    data = bytes(changed) + bytes(2048)

    def found() -> TarMember | str | None:
        try:
            return next(walk(lambda at, size: data[at : at + size], 0, len(data)), None)
        except DamageError as problem:
            return problem.reason

    quick = found()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar, "_plain_member", lambda *_: None)
        assert found() == quick


@pytest.mark.parametrize("format", FORMATS.values())
def test_usual_headers_take_the_quick_way(format: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive([("a.json", 5), ("a.0.jpg", 600), ("b.json", 0)], format)
    monkeypatch.setattr(tar, "_member", lambda *_: pytest.fail("took the long way"))
    assert [member.name for member in read_all(data)] == ["a.json", "a.0.jpg", "b.json"]


def test_members_tile_the_archive() -> None:
    data = archive([("a.json", 5), ("x" * 200, 600), ("é.jpg", 512), ("b", 0)], tarfile.PAX_FORMAT)
    found = read_all(data)
    assert [m.start for m in found] == [0, *(m.end for m in found[:-1])]
    assert data[found[-1].end :].strip(b"\0") == b""


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
def test_extended_headers_are_not_allocated_as_they_claim(kind: bytes) -> None:
    data = extension(kind, b"", claimed=2**33) + header() + bytes(1024)
    asked = []

    def read(at: int, size: int) -> bytes:
        asked.append(size)
        return data[at : at + size]

    with pytest.raises(DamageError, match="too many"):
        list(walk(read, 0, 2**40))
    assert max(asked) <= MAX_EXTENSION_BYTES


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (extension(b"L", b"a.json\0") * 9 + header(), "more than 8 extended"),
        (extension(b"L", b"a.json\0") + bytes(1024), "no readable tar header"),
        (extension(b"L", b"a" * 700)[:600], "cut off in the extended"),
        (extension(b"x", b"99 path=a.json\n") + header(), "not readable"),
        (extension(b"x", b"0 path=a.json\n") + header(), "not readable"),
        (extension(b"x", b"-5 path=a\n") + header(), "no readable tar header"),
        (extension(b"x", b"7 path\n") + header(), "not readable"),
        (extension(b"x", b"10 size=x\n") + header(), "no readable tar header"),
        (extension(b"x", b"28 size=9999999999999999999\n") + header(), "cut off"),
        (extension(b"g", b"15 path=a.json\n") + header("b.json"), "sets names or sizes"),
        (extension(b"g", b"11 size=99\n") + header("b.json"), "sets names or sizes"),
        (header(size=2**62), "cut off"),
        (header(size=513) + bytes(512), "cut off"),
        (header(size=-512), "negative size"),
        (header(type=b"S"), "sparse"),
        (header()[:300], "cut off in the tar header"),
        (b"\1" * 512, "no readable tar header"),
    ],
)
def test_headers_that_make_no_sense_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(DamageError, match=reason):
        read_all(data)


@pytest.mark.parametrize(
    "size",
    [
        b"0000000000+",
        b"+0000000010",
        b"0000000_10\0",
        b"00000000_10",
        b"00000000o10",
        b"0x000000010",
        b"99999999999",
    ],
)
def test_sizes_are_octal_digits_and_nothing_else(size: bytes) -> None:
    damaged = bytearray(header(size=8) + bytes(1024))
    damaged[124:135] = size
    damaged[148:156] = b" " * 8
    damaged[148:156] = b"%06o\0 " % sum(damaged[:512])
    with pytest.raises(DamageError, match="no readable tar header"):
        read_all(bytes(damaged))


def test_harmless_global_headers_are_passed_over() -> None:
    """`git archive` writes one; it belongs to the range of the member behind it."""
    data = extension(b"g", b"20 comment=whatever\n") + header(size=3) + b"{}\n" + bytes(509) + bytes(1024)
    assert [(m.name, m.start, m.data, m.size) for m in read_all(data)] == [("a.json", 0, 1536, 3)]


def test_links_with_a_size_have_no_content() -> None:
    link = bytearray(header("l.json", type=tarfile.SYMTYPE, linkname="a"))
    link[124:136] = b"00000001000\0"
    link[148:156] = b" " * 8
    link[148:156] = b"%06o\0 " % sum(link)
    assert [(m.name, m.plain) for m in read_all(bytes(link) + header() + bytes(1024))] == [
        ("l.json", False),
        ("a.json", True),
    ]


def test_signed_checksums_of_old_programs_are_understood() -> None:
    data = bytearray(header("é.json"))
    signed = sum(byte - 256 if byte > 127 else byte for byte in data[:148] + data[156:]) + 256
    data[148:156] = b"%06o\0 " % signed
    assert [m.name for m in read_all(bytes(data))] == ["é.json"]
