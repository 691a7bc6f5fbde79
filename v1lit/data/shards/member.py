"""Members of examples: their names, their limits, and the bytes of one example in a shard."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping

from v1lit.data.example import load_json
from v1lit.data.images import EXTENSIONS
from v1lit.data.shards.error import DamageError
from v1lit.data.shards.tar import TarMember, padded, walk

MAX_JSON_BYTES = 16 * 2**20
MAX_IMAGE_BYTES = 256 * 2**20
MAX_EXAMPLE_BYTES = 2**29
"""All members of one example together, with their tar headers."""
_MEMBER_NAME = re.compile(r"([^./\\\x00]+)\.((?:\d+\.)?([A-Za-z0-9]+))")


def split_name(name: str) -> tuple[str, str, str] | None:
    """Name of a member -> (key, kind, extension): ("a", "0.jpg", "jpg"); None where it is no such name."""
    match = _MEMBER_NAME.fullmatch(name)
    return (match[1], match[2], match[3]) if match else None


def misnamed(name: str) -> DamageError:
    """The problem of a member whose name `split_name` does not understand."""
    return DamageError(
        f"the member {name!r} is not named KEY.json, KEY.jpg or KEY.0.jpg, with no folder", "member"
    )


def size_limit(kind: str) -> int:
    """The most bytes that a member of that kind may have."""
    return MAX_JSON_BYTES if kind == "json" else MAX_IMAGE_BYTES


def unpack(data: bytes) -> tuple[str, dict[str, bytes]]:
    """Key and members (kind -> content) of the bytes of one example.

    Raises:
        DamageError: the bytes are not the whole members of one example, or a member must not be read.
    """
    key: str | None = None
    members: dict[str, bytes] = {}
    end = 0
    for member in walk(lambda at, size: data[at : at + size], 0, len(data)):
        parts = split_name(member.name)
        if parts is None:
            raise misnamed(member.name)
        if key is not None and parts[0] != key:
            raise DamageError(
                f"members of {key!r} and of {parts[0]!r} where one example should be", "shard", key
            )
        key, kind, extension = parts
        if reason := _problem_of_member(member, kind, extension, members):
            raise DamageError(reason, "member", key)
        members[kind] = data[member.data : member.data + member.size]
        end = member.end
    if key is None or end != len(data):
        raise DamageError("no tar header where a member should be", "shard", key)
    return key, members


def _problem_of_member(
    member: TarMember, kind: str, extension: str, others: Mapping[str, bytes]
) -> str | None:
    if not member.plain:
        return f"the member {member.name!r} is a link, folder or special file, only plain files are read"
    if extension != "json" and extension not in EXTENSIONS:
        return f"the member {member.name!r} is of no known kind; read are json, {', '.join(EXTENSIONS)}"
    if kind in others:
        return f"the member {member.name!r} occurs twice"
    if member.size > (limit := size_limit(kind)):
        return f"the member {member.name!r} has {member.size} bytes, the limit is {limit}"
    return None


def pack(key: str, members: Mapping[str, bytes]) -> bytes:
    """The bytes of one example: headers and contents, depending on nothing else (no times, no user names).

    Raises:
        DamageError: a member or the whole is larger than a reader would accept, or is no name for one.
    """
    out = io.BytesIO()
    for kind, content in members.items():
        name = f"{key}.{kind}"
        if split_name(name) is None:
            raise misnamed(name)
        if len(content) > (limit := size_limit(kind)):
            raise DamageError(
                f"the member {name!r} has {len(content)} bytes, the limit is {limit}", "member", key
            )
        info = tarfile.TarInfo(name)  # Defaults: time 0, user 0, no user name.
        info.size, info.mode = len(content), 0o644
        out.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        out.write(content)
        out.write(bytes(padded(len(content)) - len(content)))
    if out.tell() > MAX_EXAMPLE_BYTES:
        raise DamageError(f"has {out.tell()} bytes, the limit is {MAX_EXAMPLE_BYTES}", "member", key)
    return out.getvalue()


def counts(members: Mapping[str, bytes]) -> tuple[int, int]:
    """Numbers of images and regions, as far as the json member says; it need not be valid otherwise."""
    try:
        record = load_json(members.get("json", b"{}"))
    except ValueError:
        return 0, 0
    if not isinstance(record, dict):
        return 0, 0
    images, regions = record.get("images"), record.get("regions")
    return len(images) if isinstance(images, list) else 0, len(regions) if isinstance(regions, dict) else 0
