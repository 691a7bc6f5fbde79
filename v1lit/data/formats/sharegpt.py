"""ShareGPT's rows, as LLaMA-Factory and others take them: `conversations`, `system`, `images`, and no boxes.

Source: hiyouga/LLaMA-Factory, data/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from v1lit.data.example import Example
from v1lit.data.formats.conversations import images_of, turns_of
from v1lit.data.importing.format import Format, Reading
from v1lit.data.importing.rows import Row
from v1lit.data.importing.turns import conversation, words_only


def read(row: Row, reading: Reading) -> Iterator[Example]:
    """The example of a row; all of its text is words."""
    yield conversation(
        reading,
        id=reading.id(row.get("id")),
        turns=turns_of(row, "conversations", "from", "value"),
        images=images_of(row, reading),
        split=words_only,
    )


FORMAT = Format(
    name="sharegpt", about="conversations from human and gpt with images, without boxes", read=read
)
