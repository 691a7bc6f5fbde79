"""A YAML file says which column of any rows holds what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.rows import import_as, picture, write_rows
from helpers.v1g_cases import examples, rejected

from v1lit.data.formats.registry import get_format
from v1lit.grounding.trace import parse_trace

FULL = {
    "id": "key",
    "image": "photo",
    "question": "qa.q",
    "answer": "qa.a",
    "boxes": "objects.bbox",
    "labels": "objects.category",
    "label_names": ["cup", "dog"],
    "thought": "why",
    "system": "system",
    "box_format": {"unit": "0-1000", "order": "xywh"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "in", "wide.jpg")
    return tmp_path / "in"


def mapping(folder: Path, content: Any) -> str:
    path = folder.parent / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def row(**changes: Any) -> dict[str, Any]:
    things = [
        {"bbox": [500, 500, 500, 250], "category": 0},
        {"bbox": [0, 0, 100, 100], "category": 1},
        {"bbox": [100, 0, 100, 100], "category": 0},
    ]
    return {
        "key": "k",
        "photo": "wide.jpg",
        "qa": {"q": "What?", "a": 3},
        "objects": things,
        "why": "So.",
        "system": "Be brief.",
    } | changes


def test_columns_become_an_example_with_a_call_for_each_label(folder: Path) -> None:
    import_as(mapping(folder, FULL), write_rows(folder / "x.jsonl", [row()]), folder.parent / "out")
    [example] = examples(folder.parent / "out")
    assert (example.id, example.answer, example.source) == ("k#0", "3", "mine:x.jsonl")
    assert [m.content for m in example.messages[:2]] == ["Be brief.", "<image>\nWhat?"]
    calls = parse_trace(example.messages[2].content).trace.calls
    assert [(call.query, len(call.objects)) for call in calls] == [("cup", 2), ("dog", 1)]
    assert example.regions["<|region_1|>"].box == pytest.approx((30, 20, 60, 30))
    assert example.messages[2].content.endswith("\nSo. </think><answer>3</answer>")


def test_a_data_set_that_was_saved_to_disk_is_read_split_by_split(folder: Path) -> None:
    """The layout of `DatasetDict.save_to_disk`, with what `map` leaves beside it; images are held."""
    held = {"photo": {"bytes": (folder / "wide.jpg").read_bytes(), "path": None}}
    saved = folder.parent / "saved"
    for split in ("train", "validation"):
        write_rows(saved / split / "data-00000-of-00001.arrow", [row(key=split, **held)] * 3)
        write_rows(saved / split / "state.json", [{"_data_files": []}])
        write_rows(saved / split / "cache-1f3a.arrow", [{"x": 1}])
    write_rows(saved / "dataset_dict.json", [{"splits": ["train", "validation"]}])
    report = import_as(mapping(folder, FULL), saved, folder.parent / "out")
    assert [(name, part.accepted) for name, part in report.splits.items()] == [("train", 3), ("val", 3)]
    assert report.ignored == ()
    first = examples(folder.parent / "out/val")[0]
    assert (first.id, first.source) == ("validation#0", "mine:validation/data-00000-of-00001.arrow")


def test_rows_without_images_boxes_or_thoughts_are_plain_text(folder: Path) -> None:
    source = write_rows(folder / "x.parquet", [{"q": "2 + 2?", "a": "4"}])
    import_as(mapping(folder, {"question": "q", "answer": "a"}), source, folder.parent / "out")
    [example] = examples(folder.parent / "out")
    assert [message.content for message in example.messages] == ["2 + 2?", "4"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"qestion": "q"}, "unknown key 'qestion'; did you mean 'question'"),
        ({"answer": None}, "answer is missing"),
        ({"box_format": None}, "box_format is missing"),
        ({"box_format": {"units": "pixels"}}, "unknown key of box_format 'units'; did you mean 'unit'"),
        ({"box_format": {"unit": "inches"}}, "inches"),
        ({"image": 3}, "image is 3; it is the name of a column"),
    ],
)
def test_mistakes_in_a_mapping_are_named_with_its_file(
    folder: Path, change: dict[str, Any], why: str
) -> None:
    content = {key: value for key, value in (FULL | change).items() if value is not None}
    with pytest.raises(ValueError, match=rf"mine\.yaml.*{why}"):
        get_format(mapping(folder, content))


def test_a_mapping_that_is_no_yaml_or_runs_code_is_refused(folder: Path) -> None:
    path = folder.parent / "mine.yaml"
    for text in ("a: [", "question: !!python/object/apply:os.getcwd []", "- question"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"mine\.yaml"):
            get_format(str(path))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"qa": {"a": 1}}, "there is no column qa.q; at 'q' there is: a"),
        ({"qa": {"q": None, "a": 1}}, "qa.q is None; it must be text or a number"),
        ({"objects": [{"bbox": [0, 0, 9, 9], "category": 7}]}, "the label is 7; label_names has 2 names"),
        ({"objects": [{"bbox": [0, 0, 1001, 9], "category": 1}]}, None),
        ({"objects": [{"bbox": [0, 0, 1200, 9], "category": 1}]}, "outside of the 60x40 image"),
    ],
)
def test_rows_that_do_not_fit_are_rejected(folder: Path, change: dict[str, Any], why: str | None) -> None:
    import_as(mapping(folder, FULL), write_rows(folder / "x.jsonl", [row(**change)]), folder.parent / "out")
    reasons = [line["reason"] for line in rejected(folder.parent / "out")]
    assert (why is None and not reasons) or why in reasons[0]
