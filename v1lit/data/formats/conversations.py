"""What rows with turns have in common: who says what, and the images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from v1lit.data.images import EncodedImage
from v1lit.data.importing.format import Reading

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Names of speakers -> roles."""


def turns_of(row: Mapping[str, Any], key: str, role: str, text: str) -> list[tuple[str, str]]:
    """The turns of a row as `(role, text)`; a `system` beside them comes first.

    Args:
        row: as it is.
        key: where its turns are.
        role: of a turn, who speaks.
        text: of a turn, what is said.

    Raises ValueError where a turn has another form.
    """
    given = row.get(key)
    if not isinstance(given, list) or not all(isinstance(turn, Mapping) for turn in given):
        raise ValueError(f"{key} must be a list of turns, not {given!r:.60}")
    turns: list[tuple[str, str]] = []
    if isinstance(row.get("system"), str) and row["system"]:
        turns.append(("system", row["system"]))
    for number, turn in enumerate(given, start=1):
        speaker, said = turn.get(role), turn.get(text)
        if speaker not in ROLES:
            allowed = ", ".join(ROLES)
            raise ValueError(f"turn {number} is from {speaker!r:.40}; known speakers are {allowed}")
        if not isinstance(said, str):
            raise ValueError(f"turn {number} has no text ({text} is {said!r:.40})")
        turns.append((ROLES[speaker], said))
    return turns


def images_of(row: Mapping[str, Any], reading: Reading) -> tuple[EncodedImage, ...]:
    """The images of a row, from `images` or `image`: one or a list, or none at all."""
    for other in ("videos", "audios"):
        if row.get(other):
            raise ValueError(f"the row has {other}, which are not supported")
    given = row.get("images") or row.get("image") or []
    return tuple(map(reading.image, given if isinstance(given, list) else [given]))
