"""Members of examples: their kinds, their limits, and the bytes of one example in a shard."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence

from v1lit.data.errors import DamageError
from v1lit.data.example.example import load_json
from v1lit.data.images import EXTENSIONS
from v1lit.data.shards.names import common_keys, is_clutter, kind_of, misnamed, possible_keys
from v1lit.data.shards.tar import TarMember, padded, walk

MAX_JSON_BYTES = 16 * 2**20
MAX_IMAGE_BYTES = 256 * 2**20
MAX_EXAMPLE_BYTES = 2**29
"""All members of one example together, with their tar headers."""


def size_limit(kind: str) -> int:
    """The most bytes that a member of that kind may have."""
    return MAX_JSON_BYTES if kind == "json" else MAX_IMAGE_BYTES


def unpack(data: bytes) -> tuple[str, dict[str, bytes]]:
    """Key and members (kind -> content) of the bytes of one example.

    Raises DamageError where the bytes are not the whole members of one example, or a member must not be read.
    """
    tar_members = list(walk(lambda at, size: data[at : at + size], 0, len(data)))
    own = [member for member in tar_members if not is_clutter(member)]
    key = _key_of(own)
    if key is None or tar_members[-1].end != len(data):
        raise DamageError("no tar header where a member should be", "shard", key)
    members: dict[str, bytes] = {}
    for member in own:
        kind = kind_of(member.name, key)
        if reason := _problem_of_member(member, kind, members):
            raise DamageError(reason, "member", key)
        members[kind] = data[member.data : member.data + member.size]
    return key, members


def _key_of(members: Sequence[TarMember]) -> str | None:
    """Name of the example that all these members belong to; None without any."""
    keys: tuple[str, ...] = ()
    for member in members:
        if not (possible := possible_keys(member.name)):
            raise misnamed(member.name)
        common = common_keys(keys, member.name) if keys else possible
        if not common:
            reason = f"members of {keys[-1]!r} and of {possible[-1]!r} where one example should be"
            raise DamageError(reason, "shard", keys[-1])
        keys = common
    return keys[-1] if keys else None


def _problem_of_member(member: TarMember, kind: str, others: Mapping[str, bytes]) -> str | None:
    if not member.plain:
        return f"the member {member.name!r} is a link or special file, only plain files are read"
    number, dot, extension = kind.rpartition(".")
    if (extension != "json" and extension not in EXTENSIONS) or (dot and not number.isdecimal()):
        return f"the member {member.name!r} is of no known kind; read are json, {', '.join(EXTENSIONS)}"
    if kind in others:
        return f"the member {member.name!r} occurs twice"
    if member.size > (limit := size_limit(kind)):
        return f"the member {member.name!r} has {member.size} bytes, the limit is {limit}"
    return None


def pack(key: str, members: Mapping[str, bytes]) -> bytes:
    """The bytes of one example: headers and contents, depending on nothing else (no times, no user names).

    Raises DamageError where a member or the whole is larger than a reader would accept, or the key is no name
    for one.
    """
    out = io.BytesIO()
    for kind, content in members.items():
        name = f"{key}.{kind}"
        if key not in possible_keys(name):
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
