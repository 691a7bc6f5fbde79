"""Tar headers, read with suspicion: where the members lie, without ever allocating what a header claims.

Understood are the plain, ustar, GNU (long names) and PAX layouts. Python's tarfile is ten times slower per
member, takes damage between two members for the end of the archive, and allocates whatever size an extended
header claims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import NamedTuple

from v1lit.data.errors import DamageError

BLOCK = 512
MAX_EXTENSION_BYTES = 2**20
MAX_EXTENSIONS = 8
"""Extended headers before one member: a long name, its attributes, ..."""
ZEROS = bytes(BLOCK)
_PLAIN = Struct("100s 24x 11sB 12x 6sB x c 188x B 166x")
"""Name, size and what ends it, checksum and what ends it, kind, first byte of the folder."""

Read = Callable[[int, int], bytes]
"""`read(offset, size)` returns that many bytes from there, fewer at the end."""


class TarMember(NamedTuple):
    """One member. In bytes: `start` of its first header, extended ones included; `end`: the next header."""

    name: str
    plain: bool
    folder: bool
    start: int
    data: int
    size: int
    end: int


def walk(read: Read, start: int, end: int) -> Iterator[TarMember]:
    """The members from `start` on, up to `end` or the first block of zeros.

    Raises DamageError where no header stands there, and for a member that would reach beyond `end`.
    """
    while start < end and (member := _next_member(read, start, end)) is not None:
        yield member
        start = member.end


def _next_member(read: Read, start: int, end: int) -> TarMember | None:
    at = start
    extensions: dict[bytes, bytes] = {}  # The first one with a name or a size wins, as in tarfile.
    for _ in range(MAX_EXTENSIONS + 1):
        header = read(at, BLOCK)
        if len(header) < BLOCK or at + BLOCK > end:
            raise DamageError(f"cut off in the tar header at byte {at}")
        if at == start:
            if plain := _plain_member(header, at, end):
                return plain
            if header == ZEROS:
                return None
        kind, size = header[156:157], _check_header(header, at)
        if kind not in b"xXgLK":
            return _member(header, extensions, start, at, end, kind, size)
        if size > MAX_EXTENSION_BYTES:
            raise DamageError(f"the extended tar header at byte {at} has {size} bytes, too many")
        content = read(at + BLOCK, size)
        if len(content) < size:
            raise DamageError(f"cut off in the extended tar header at byte {at}")
        for name, value in _extension(kind, content, at).items():
            extensions.setdefault(name, value)
        at += BLOCK + padded(size)
    raise DamageError(f"more than {MAX_EXTENSIONS} extended tar headers at byte {start}")


def _plain_member(header: bytes, start: int, end: int) -> TarMember | None:
    """The member of a header as nearly all are written, in a third of the time; None for any other."""
    name, size, size_end, checksum, checksum_end, kind, prefix = _PLAIN.unpack(header)
    if kind != b"0" or size_end or checksum_end or prefix or not (size + checksum).isdigit():
        return None
    try:
        length, stored = int(size, 8), int(checksum, 8)
    except ValueError:  # 8 or 9 in an octal number.
        return None
    data = start + BLOCK
    after = data + padded(length)
    text = decoded(_text(name))
    if after > end or text.endswith("/") or stored != sum(header) - sum(header[148:156]) + 256:
        return None
    return TarMember(text, True, False, start, data, length, after)


def _member(
    header: bytes, extensions: dict[bytes, bytes], start: int, at: int, end: int, kind: bytes, size: int
) -> TarMember:
    name = extensions.get(b"path") or _text(header[:100])
    if b"path" not in extensions and kind != b"S" and (prefix := _text(header[345:500])):
        name = prefix + b"/" + name
    if b"size" in extensions:
        size = _whole_number(extensions[b"size"], 10, at)
    if kind in b"123456":  # Links, folders, devices: the size field, if any, does not say what follows.
        size = 0
    data = at + BLOCK
    if kind == b"S":
        raise DamageError(f"the member {decoded(name)!r} is a sparse file, only plain files are read")
    after = data + padded(size)
    if after > end:
        raise DamageError(f"cut off: the member {decoded(name)!r} would reach to byte {after} of {end}")
    folder = kind == b"5" or (kind in b"0\0" and name.endswith(b"/"))
    plain = kind in b"0\0" and not folder and not any(key.startswith(b"GNU.sparse.") for key in extensions)
    return TarMember(decoded(name.rstrip(b"/")), plain, folder, start, data, size, after)


def _check_header(header: bytes, at: int) -> int:
    """The size in a header, after checking its checksum."""
    field = header[148:156]
    stored = _whole_number(_text(field), 8, at)
    total = sum(header) - sum(field) + 256
    # Some old programs summed signed bytes.
    if stored != total and stored != total - 256 * sum(b > 127 for b in header[:148] + header[156:]):
        raise DamageError(f"damaged: no readable tar header at byte {at}")
    field = header[124:136]
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] == 0xFF or field.lstrip().startswith(b"-"):
        raise DamageError(f"damaged: the member {decoded(_text(header[:100]))!r} has a negative size")
    return _whole_number(_text(field), 8, at)


def _extension(kind: bytes, content: bytes, at: int) -> dict[bytes, bytes]:
    """What an extended header says about the member behind it."""
    if kind == b"K":  # The target of a link, and links are not read.
        return {}
    if kind == b"L":
        return {b"path": _text(content)}
    records = _pax_records(content, at)
    if kind != b"g":
        return records
    # A header for all that follows: an example could not be read alone if it gave names or sizes.
    if any(key in (b"path", b"size", b"linkpath") or key.startswith(b"GNU.") for key in records):
        raise DamageError(f"the global tar header at byte {at} sets names or sizes, which is not supported")
    return {}


def _pax_records(content: bytes, at: int) -> dict[bytes, bytes]:
    """Records `LENGTH NAME=VALUE\\n`, where LENGTH counts the whole record."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(content) and content[start]:
        space = content.find(b" ", start, start + 20)
        length = _whole_number(content[start:space], 10, at) if space > start else 0
        record = content[space + 1 : start + length]
        name, equals, value = record[:-1].partition(b"=")
        if start + length > len(content) or not record.endswith(b"\n") or not equals:
            raise DamageError(f"damaged: the extended tar header at byte {at} is not readable")
        records[name] = value
        start += length
    return records


def padded(size: int) -> int:
    """Bytes that content of `size` bytes takes in a tar file."""
    return (size + BLOCK - 1) // BLOCK * BLOCK


def decoded(name: bytes) -> str:
    """A member's name as text; bytes that are not UTF-8 become what Python makes of such file names."""
    return name.decode("utf-8", "surrogateescape")


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _whole_number(digits: bytes, base: int, at: int) -> int:
    digits = digits.strip(b" ") or b"0"
    try:
        if digits.isdigit() and len(digits) <= 20:
            return int(digits, base)
    except ValueError:  # 8 or 9 in an octal number.
        pass
    raise DamageError(f"damaged: no readable tar header at byte {at}")
