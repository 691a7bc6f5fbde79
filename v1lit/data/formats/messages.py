"""Rows with `messages`, `images` and `objects`: the convention of ms-swift for grounding.

`<ref-object>` and `<bbox>` in a text stand for the entries of `objects`, in order. Source:
modelscope/ms-swift, docs/source_en/Customization/Custom-dataset.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from v1lit.data.example import Example
from v1lit.data.formats.conversations import images_of, turns_of
from v1lit.data.images import EncodedImage
from v1lit.data.importing.format import Format, Reading
from v1lit.data.importing.rows import Row
from v1lit.data.importing.turns import Part, Place, conversation
from v1lit.grounding.region import Region

_REF, _BOXES = "<ref-object>", re.compile(r"(?:<bbox>[\s,;]*)*<bbox>")
_MARK = re.compile(rf"{_REF}|{_BOXES.pattern}")


def read(row: Row, reading: Reading) -> Iterator[Example]:
    """The example of a row; boxes that the assistant places become calls for what was named last."""
    images = images_of(row, reading)
    objects = _Objects(row.get("objects"), images, reading)
    example = conversation(
        reading,
        id=reading.id(row.get("id")),
        turns=turns_of(row, "messages", "role", "content"),
        images=images,
        split=objects.split,
    )
    objects.check_all_used()
    yield example


class _Objects:
    """The entries of `objects`, taken one after the other."""

    def __init__(self, given: Any, images: Sequence[EncodedImage], reading: Reading) -> None:
        given = given or {}
        if not isinstance(given, dict):
            raise ValueError(f"objects must be an object with ref and bbox, not {given!r:.60}")
        self.refs, self.boxes = list(given.get("ref") or []), list(given.get("bbox") or [])
        self.numbers = list(given.get("image_id") or [0] * len(self.boxes))
        if len(self.numbers) != len(self.boxes):
            raise ValueError(f"objects has {len(self.boxes)} bbox but {len(self.numbers)} image_id")
        kind = given.get("bbox_type") or "real"
        if kind not in ("real", "norm1"):
            raise ValueError(f"bbox_type is {kind!r:.40}; known are real and norm1")
        self.changes = {"unit": "0-1", "size": None} if kind == "norm1" else {}
        self.images, self.reading = images, reading
        self.used_refs = self.used_boxes = 0
        self.label: str | None = None

    def split(self, text: str) -> Iterator[Part]:
        """Words and places of a turn."""
        at = 0
        for match in _MARK.finditer(text):
            yield text[at : match.start()]
            at = match.end()
            if match[0] == _REF:
                yield self._ref()
            else:
                regions = [self._region() for _ in range(match[0].count("<bbox>"))]
                yield Place(tuple(regions), self.label)
        yield text[at:]

    def check_all_used(self) -> None:
        """Raises ValueError where boxes are left over: the text does not say what they are for."""
        if left := len(self.boxes) - self.used_boxes:
            raise ValueError(f"{left} of {len(self.boxes)} boxes have no <bbox> in the text")

    def _ref(self) -> str:
        if self.used_refs == len(self.refs):
            raise ValueError(f"the text has more <ref-object> than objects has ref ({len(self.refs)})")
        self.label = str(self.refs[self.used_refs])
        self.used_refs += 1
        return self.label

    def _region(self) -> Region:
        k = self.used_boxes
        if k == len(self.boxes):
            raise ValueError(f"the text has more <bbox> than objects has bbox ({len(self.boxes)})")
        self.used_boxes += 1
        return self.reading.region(self.boxes[k], self.images, self.numbers[k], **self.changes)


FORMAT = Format(
    name="messages",
    about="messages jsonl with images and objects (ms-swift): <ref-object> and <bbox> in the text",
    read=read,
)
