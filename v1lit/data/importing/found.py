"""All objects of a kind in a picture: an example that finds them, or one that counts them."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from v1lit.data.example import Example
from v1lit.data.images import EncodedImage
from v1lit.data.importing.traces import looked_up
from v1lit.grounding.region import Region


def find_or_count(
    *, id: str, image: EncodedImage, label: str, regions: Sequence[Region], source: str
) -> Example:
    """An example in which all objects called `label` are found, or counted: which, is decided by the id."""
    if not label.strip():
        raise ValueError("an object has no label")
    if crc32(id.encode()) % 2:
        answer, question = str(len(regions)), f"How many are there of this kind: {label}?"
        thought = f"That makes {answer}."
    else:
        answer, question, thought = None, f"Point at everything of this kind: {label}.", None
    return looked_up(
        id=id,
        image=image,
        question=question,
        query=label,
        regions=regions,
        source=f"{source}/{'find' if answer is None else 'count'}",
        answer=answer,
        thought=thought,
    )
