"""Any rows, by a YAML file that says which column holds what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from v1lit.data.example import Example, Message
from v1lit.data.example.marks import IMAGE_MARKER, escape
from v1lit.data.importing.box_format import BoxFormat, read_box_format
from v1lit.data.importing.format import Format, Reading
from v1lit.data.importing.rows import Row
from v1lit.data.importing.traces import TraceWriter
from v1lit.errors import explain_unknown, named, one_line
from v1lit.grounding.markup import answer_text


@dataclass(frozen=True)
class Columns:
    """Columns of the rows; a dot goes into an object, or into every object of a list."""

    question: str
    answer: str
    image: str | None = None
    """One image or a list; rows without this are text."""
    boxes: str | None = None
    """A box, or a list of boxes, all on the first image."""
    labels: str | None = None
    """What is in the boxes: a label, or one for each box. The question, when None."""
    label_names: tuple[str, ...] | None = None
    """Names of labels that are numbers."""
    thought: str | None = None
    """Words between the look and the answer."""
    system: str | None = None
    id: str | None = None
    box_format: BoxFormat | None = None
    """What the boxes are; needed where there are boxes."""


def read_mapping(path: Path) -> Format:
    """The format that a YAML file describes.

    Raises ValueError for a file that cannot be read, keys that do not exist or are missing, and boxes whose
    format is not said.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"the mapping {path} cannot be read ({one_line(error)})") from error
    with named(str(path)):
        mapping = _checked(content)
    return Format(
        name=path.stem,
        about=f"rows by {path}",
        read=partial(_read, mapping),
        boxes=mapping.box_format or BoxFormat(),
        options={"mapping": asdict(mapping)},
    )


def _checked(content: Any) -> Columns:
    if not isinstance(content, dict):
        raise ValueError("a mapping is keys with names of columns, such as question: QUESTION")
    names = [field.name for field in fields(Columns)]
    for key in content:
        if key not in names:
            raise ValueError(explain_unknown("key", key, names))
    for key in ("question", "answer"):
        if key not in content:
            raise ValueError(f"{key} is missing: the column that holds it")
    boxes = content.pop("box_format", None)
    labels = content.pop("label_names", None)
    for key, column in content.items():
        if column is not None and not isinstance(column, str):
            raise ValueError(f"{key} is {column!r:.60}; it is the name of a column")
    if content.get("boxes") and boxes is None:
        raise ValueError(
            "box_format is missing, such as {unit: pixels, order: xyxy}: boxes are often mistaken"
        )
    return Columns(
        **content,
        label_names=None if labels is None else tuple(map(str, labels)),
        box_format=None if boxes is None else read_box_format(boxes),
    )


def _read(mapping: Columns, row: Row, reading: Reading) -> Iterator[Example]:
    images = tuple(map(reading.image, _list(_value(row, mapping.image)) if mapping.image else []))
    question, answer = (_words(row, name) for name in (mapping.question, mapping.answer))
    trace = TraceWriter()
    parts: list[Any] = []
    for label, boxes in _boxes(mapping, row, question).items():
        parts += ["\n" if parts else "", trace.call(label, [reading.region(box, images) for box in boxes])]
    if mapping.thought and (thought := _value(row, mapping.thought)):
        parts.append(f"\n{thought}" if parts else str(thought))
    thought_text = f"<think> {trace.write(parts)} </think>" if parts else ""
    system = _value(row, mapping.system) if mapping.system else None
    yield Example(
        id=reading.id(_value(row, mapping.id) if mapping.id else None),
        images=images,
        messages=(
            *([Message("system", escape(str(system)))] if system else []),
            Message("user", f"{IMAGE_MARKER * len(images)}\n{escape(question)}".lstrip("\n")),
            Message("assistant", thought_text + (answer_text(escape(answer)) if parts else escape(answer))),
        ),
        regions=trace.regions,
        answer=answer,
        source=reading.source,
    )


def _boxes(mapping: Columns, row: Row, question: str) -> dict[str, list[Any]]:
    """Boxes by what is in them, in the order in which the labels come first."""
    if mapping.boxes is None:
        return {}
    boxes = _list(_value(row, mapping.boxes))
    if boxes and not isinstance(boxes[0], list | tuple):
        boxes = [boxes]
    if mapping.labels is None:
        return {question: boxes} if boxes else {}
    labels = [_label(mapping, label) for label in _list(_value(row, mapping.labels))]
    if len(labels) == 1:
        labels *= len(boxes)
    if len(labels) != len(boxes):
        raise ValueError(f"there are {len(boxes)} boxes in {mapping.boxes} but {len(labels)} labels")
    grouped: dict[str, list[Any]] = {}
    for label, box in zip(labels, boxes, strict=True):
        grouped.setdefault(label, []).append(box)
    return grouped


def _label(mapping: Columns, label: Any) -> str:
    if isinstance(label, str):
        return label
    if mapping.label_names is None:
        raise ValueError(
            f"the label is {label!r:.40}: say with label_names which names the numbers stand for"
        )
    if not isinstance(label, int) or not 0 <= label < len(mapping.label_names):
        raise ValueError(f"the label is {label!r:.40}; label_names has {len(mapping.label_names)} names")
    return mapping.label_names[label]


def _value(row: Any, name: str) -> Any:
    """What stands in a column. Raises ValueError where there is none of that name."""
    for number, key in enumerate(parts := name.split(".")):
        if isinstance(row, list):
            return [_value(item, ".".join(parts[number:])) for item in row]
        if not isinstance(row, Mapping) or key not in row:
            there = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            raise ValueError(f"there is no column {name}; at {key!r} there is: {there:.200}")
        row = row[key]
    return row


def _words(row: Row, name: str) -> str:
    value = _value(row, name)
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ValueError(f"{name} is {value!r:.60}; it must be text or a number")
    return str(value).strip()


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
