"""Referring expressions as in RefCOCO: what an expression names is found.

Either rows with an image, expressions and a box, or a folder with `instances.json` and `refs*.json`, which is
the published `refs(...).p` as JSON: pickles are not read, because they can run code. Source of the layouts:
lichengunc/refer, refer.py; lmms-lab/RefCOCO.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from v1lit.data.example import Example
from v1lit.data.example.example import load_json
from v1lit.data.importing.box_format import BoxFormat
from v1lit.data.importing.find import canonical_split
from v1lit.data.importing.format import Format, Gathered, Reading
from v1lit.data.importing.rows import Row
from v1lit.data.importing.traces import looked_up

EXPRESSIONS = ("expression", "expressions", "sentence", "sentences", "caption", "answer")
"""Keys under which rows have their expressions, the first that is there counts."""


def gather(source: Path) -> Gathered | None:
    """Rows of `instances.json` with `refs*.json`, by the split that each names; None of other sources.

    Raises ValueError where one of them is missing, or there as a pickle only.
    """
    found = sorted(source.glob("refs*.json"))
    if not found and not (source / "instances.json").is_file():
        return None
    if len(found) != 1 or not (source / "instances.json").is_file():
        pickles = sorted(source.glob("refs*.p"))
        advice = (
            f"; {pickles[0].name} is a pickle, which can run code when it is read: where you trust it, "
            f'write it as JSON with: python -c "import json, pickle; json.dump(pickle.load(open('
            f"'{pickles[0].name}', 'rb')), open('refs.json', 'w'))\""
            if pickles and not found
            else "; a file of rows with image, expression and bbox is read as well"
        )
        raise ValueError(f"{source} must hold instances.json and one refs*.json{advice}")
    files = [found[0], source / "instances.json"]
    refs, instances = (load_json(path.read_bytes()) for path in files)
    boxes = {thing["id"]: thing["bbox"] for thing in instances["annotations"]}
    names = {image["id"]: image["file_name"] for image in instances["images"]}
    splits = dict.fromkeys(canonical_split(ref["split"]) for ref in refs)
    return Gathered(dict.fromkeys(splits, files), partial(_rows, refs, boxes, names))


def _rows(refs: list[Row], boxes: dict[Any, Any], names: dict[Any, str], split: str | None) -> Iterator[Row]:
    for ref in refs:
        if canonical_split(ref["split"]) == split:
            yield {
                "id": ref["ref_id"],
                "image": names.get(ref["image_id"]),
                "sentences": [sentence["sent"] for sentence in ref["sentences"]],
                "bbox": boxes.get(ref["ann_id"]),
            }


def read(row: Row, reading: Reading) -> Iterator[Example]:
    """An example for every expression of a row."""
    key = next((key for key in EXPRESSIONS if row.get(key)), None)
    if key is None:
        raise ValueError(f"the row has no expression; looked for {', '.join(EXPRESSIONS)}")
    expressions = row[key] if isinstance(row[key], list) else [row[key]]
    image = reading.image(row.get("image") or row.get("file_name"))
    region = reading.region(row.get("bbox"), [image])  # type: ignore[arg-type]  # It is checked there.
    name = reading.id(next((row[k] for k in ("id", "question_id", "ref_id") if row.get(k) is not None), None))
    for number, expression in enumerate(expressions):
        if not isinstance(expression, str) or not expression.strip():
            raise ValueError(f"expression {number + 1} is {expression!r:.40}")
        yield looked_up(
            id=f"{name}/{number}",
            image=image,
            question=f"Where is this: {expression.strip()}?",
            query=expression.strip(),
            regions=[region],
            source=reading.source,
        )


FORMAT = Format(
    name="refcoco",
    about="referring expressions: image, expression(s), bbox; or refs*.json with instances.json",
    read=read,
    boxes=BoxFormat("pixels", "xywh"),
    gather=gather,
)
