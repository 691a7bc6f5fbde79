"""Names of members, as programs that make WebDataset shards write them, and which members belong together.

    photo.json  photo.jpg               the example "photo"
    photo.json  photo.0.jpg  photo.1.PNG
    ./train/photo.json                  of a folder: "train/photo"
    photo.v2.json  photo.v2.jpg         "photo.v2": after its last dot a name says what is in the file

A name alone can leave it open: `photo.1.jpg` is the image of "photo.1", or the second one of "photo". The
members beside it decide, and where they do not, the shorter name is meant, as in WebDataset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from v1lit.data.errors import DamageError
from v1lit.data.images import EXTENSIONS
from v1lit.data.shards.tar import TarMember

_USUAL = re.compile(r"([^./\\\x00]+)\.[^./\\\x00]+")
_CLUTTER = {".DS_Store", "Thumbs.db", "desktop.ini"}


def possible_keys(name: str) -> tuple[str, ...]:
    """Names of the examples that a member of that name can belong to, the longest first; none for odd names.

    A name is odd without an extension, hidden, with a backslash, absolute, or leading out of its folder.
    """
    if usual := _USUAL.fullmatch(name):
        return (usual[1],)
    *folders, base = [part for part in name.split("/") if part not in ("", ".")] or [""]
    pieces = base.split(".")
    if name.startswith("/") or "\\" in name or ".." in folders or len(pieces) < 2 or not pieces[0]:
        return ()
    extension = pieces[-1].lower()
    shortest = 1  # Of what is no example's, anything up to a dot may be the key.
    if extension == "json" or extension in EXTENSIONS:
        numbered = extension != "json" and len(pieces) > 2 and pieces[-2].isdecimal()
        shortest = len(pieces) - (2 if numbered else 1)
    above = "".join(f"{folder}/" for folder in folders)
    return tuple(above + ".".join(pieces[:length]) for length in range(len(pieces) - 1, shortest - 1, -1))


def common_keys(keys: Iterable[str], name: str) -> tuple[str, ...]:
    """Those of `keys`, which some members can belong to, that the next member can belong to as well."""
    possible = possible_keys(name)
    return tuple(key for key in keys if key in possible)


def kind_of(name: str, key: str) -> str:
    """What is in a member of the example `key`: "json", "jpg", "0.jpg"; in lower case."""
    base, own = name.rpartition("/")[2], key.rpartition("/")[2]
    return base[len(own) + 1 :].lower()


def is_clutter(member: TarMember) -> bool:
    """Whether a member holds nothing of anybody's: a folder's entry, or what a desktop leaves in folders."""
    *folders, base = member.name.split("/")
    return member.folder or base.startswith("._") or base in _CLUTTER or "__MACOSX" in folders


def misnamed(name: str) -> DamageError:
    """The problem of a member that belongs to no example."""
    return DamageError(f"the member {name!r} is not named KEY.json, KEY.jpg or KEY.0.jpg", "member")
