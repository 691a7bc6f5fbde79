"""What the sources of a mixture are called where they are measured one by one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from v1lit.data.config import MixtureConfig

LAST_FOLDERS = ("train", "val", "validation", "test", "shards")
"""Names of folders that say nothing of what is in them: the one above is taken."""


def source_names(mixture: Sequence[MixtureConfig]) -> list[str]:
    """The names of several sources: their own, else from their locations, with numbers where these are alike.

    Of `s3://bucket/charts/train/shard-{000..099}.tar` it is `charts`; of a second one also, `charts-2`.
    """
    taken = {source.name for source in mixture}
    names, count = [], Counter[str]()
    for source in mixture:
        name = source.name
        if name is None:
            derived = name_of_location(source.shards)
            while name is None or name in taken:
                count[derived] += 1
                name = derived if count[derived] == 1 else f"{derived}-{count[derived]}"
            taken.add(name)
        names.append(name)
    return names


def name_of_location(location: str) -> str:
    """The last part of a location that names what is there, in letters, digits, `-`, `_` and `.`."""
    path = re.sub(r"^\w+:(//)?", "", location)
    parts = [part for part in re.split(r"[/\\]+", path) if part not in ("", ".", "..", "~")]
    plain = [part for part in parts if not re.search(r"[*?{}\[\]]|\.tar$", part)]
    telling = [part for part in plain if part not in LAST_FOLDERS] or plain or parts
    return re.sub(r"[^\w.-]+", "-", telling[-1] if telling else "").strip("-.") or "source"
