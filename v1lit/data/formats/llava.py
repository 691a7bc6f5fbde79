"""LLaVA's rows: `conversations` from human and gpt, an `image`, and boxes in the words of a turn.

Source: haotian-liu/LLaVA, docs/Finetune_Custom_Data.md; boxes of its instruction data are fractions of the
image padded to a square.
"""

from __future__ import annotations

from collections.abc import Iterator

from v1lit.data.example import Example
from v1lit.data.formats.conversations import images_of, turns_of
from v1lit.data.importing.box_format import BoxFormat
from v1lit.data.importing.format import Format, Reading
from v1lit.data.importing.rows import Row
from v1lit.data.importing.turns import conversation, text_boxes


def read(row: Row, reading: Reading) -> Iterator[Example]:
    """The example of a row; boxes that the assistant writes become calls."""
    images = images_of(row, reading)
    yield conversation(
        reading,
        id=reading.id(row.get("id")),
        turns=turns_of(row, "conversations", "from", "value"),
        images=images,
        split=text_boxes(reading, images),
    )


FORMAT = Format(
    name="llava",
    about="LLaVA's JSON: image, conversations; boxes [x1, y1, x2, y2] in the words",
    read=read,
    boxes=BoxFormat("0-1", "xyxy", "padded"),
)
