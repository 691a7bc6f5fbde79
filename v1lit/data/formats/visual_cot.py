"""Visual CoT's rows: a question with the boxes that must be seen to answer it.

`thought` and `full_answer` are there in its part with reasoning steps. Boxes are pixels, two corners. Source:
deepcs233/Visual-CoT (arXiv 2403.16999), its metadata/*_cot_train.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterator

from v1lit.data.example import Example
from v1lit.data.importing.format import Format, Reading
from v1lit.data.importing.rows import Row
from v1lit.data.importing.traces import looked_up


def read(row: Row, reading: Reading) -> Iterator[Example]:
    """The example of a row: the trace looks at the boxes, thinks where there is a thought, and answers."""
    question, answer = _text(row, "question"), _text(row, "answer")
    image = reading.image(row.get("image"))
    boxes = row.get("bboxs")
    if not isinstance(boxes, list) or not boxes:
        raise ValueError(f"bboxs must be a list of boxes, not {boxes!r:.60}")
    thought = row.get("thought")
    yield looked_up(
        id=reading.id(row.get("question_id")),
        image=image,
        question=question,
        query=question,
        regions=[reading.region(box, [image]) for box in boxes],
        source=f"{reading.source}/{row['dataset']}"
        if isinstance(row.get("dataset"), str)
        else reading.source,
        answer=answer,
        thought=thought if isinstance(thought, str) else None,
    )


def _text(row: Row, name: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the row has no {name} ({text!r:.40})")
    return text.strip()


FORMAT = Format(
    name="visual_cot", about="Visual CoT's jsonl: question, answer, image, bboxs, perhaps thought", read=read
)
