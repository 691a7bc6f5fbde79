"""Annotated objects: COCO, VOC, RefCOCO, Visual CoT and PixMo-points become examples that look for them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.rows import import_as, picture, write_rows
from helpers.v1g_cases import examples, rejected
from hypothesis import given
from hypothesis import strategies as st

from v1lit.data.example import Example
from v1lit.data.formats.coco import decode_runs
from v1lit.grounding.trace import parse_trace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "in", "wide.jpg")
    return tmp_path / "in"


def by_id(folder: Path) -> dict[str, Example]:
    return {example.id: example for example in examples(folder)}


def trace_of(example: Example):
    parsed = parse_trace(example.messages[-1].content)
    assert not parsed.problems
    return parsed.trace


# --- COCO ---


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 5, "file_name": "wide.jpg", "width": 60, "height": 40}],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"image_id": 5, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0},
            {"image_id": 5, "category_id": 2, "bbox": [0, 0, 5, 5], "segmentation": [[0, 0, 8, 0, 8, 8]]},
            {"image_id": 5, "category_id": 1, "bbox": [40, 5, 10, 10], "segmentation": []},
        ],
    } | changes


def test_coco_gives_an_example_for_every_image_and_category(folder: Path) -> None:
    (folder / "instances.json").write_text(json.dumps(coco()))
    import_as("coco", folder / "instances.json", folder.parent / "out")
    found = by_id(folder.parent / "out")
    assert list(found) == ["5/1", "5/2"]
    cups, dog = found.values()
    assert [region.box for region in cups.regions.values()] == [(10, 10, 30, 30), (40, 5, 50, 15)]
    assert dog.regions["<|region_1|>"].kind == "polygon"
    [call] = trace_of(cups).calls
    assert (call.query, len(call.objects)) == ("cup", 2)


def test_finding_and_counting_have_their_own_questions_and_answers(folder: Path) -> None:
    images = [{"id": k, "file_name": "wide.jpg"} for k in range(12)]
    annotations = [
        {"image_id": k, "category_id": 1, "bbox": [1 + i, 1, 5, 5]}
        for k in range(12)
        for i in range(1 + k % 3)
    ]
    (folder / "i.json").write_text(json.dumps(coco(images=images, annotations=annotations)))
    import_as("coco", folder / "i.json", folder.parent / "out")
    kinds = set()
    for example in examples(folder.parent / "out"):
        count, kind = len(example.regions), example.source.rpartition("/")[2]
        kinds.add(kind)
        if kind == "count":
            assert example.answer == str(count)
            assert "How many" in example.messages[0].content
        else:
            names = ", ".join(f"<obj{k + 1}>" for k in range(count))
            assert example.messages[1].content.endswith(f"<answer>{names}</answer>")
    assert kinds == {"find", "count"}


def test_splits_of_a_coco_folder_follow_from_names(folder: Path) -> None:
    for split in ("train", "val"):
        picture(folder / f"{split}2017", "wide.jpg")
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / f"annotations/instances_{split}2017.json").write_text(json.dumps(coco()))
    report = import_as("coco", folder, folder.parent / "out")
    assert (list(report.splits), report.splits["train"].accepted) == (["train", "val"], 2)
    assert (
        report.splits["val"].rejected == 2
    )  # The same ids, which would make a validation of known examples.


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"iscrowd": 1}, "a crowd of 'cup' is marked"),
        ({"bbox": [50, 5, 30, 10]}, "outside of the 60x40 image"),
        ({"bbox": None}, "None is neither a box"),
        ({"segmentation": [[1, 2, 3]]}, "a segmentation is a list of lists"),
        ({"segmentation": {"size": [4, 6], "counts": [24]}}, "a mask says [4, 6] (height, width)"),
        ({"segmentation": {"size": [40, 60], "counts": [24]}}, "do not add up to the 2400 pixels"),
    ],
)
def test_annotations_that_cannot_be_are_rejected(folder: Path, change: dict[str, Any], why: str) -> None:
    thing = {"image_id": 5, "category_id": 1, "bbox": [1, 1, 5, 5]} | change
    (folder / "i.json").write_text(json.dumps(coco(annotations=[thing])))
    import_as("coco", folder / "i.json", folder.parent / "out")
    [line] = rejected(folder.parent / "out")
    assert why in line["reason"]
    assert line["id"] == "5/1"


def test_a_picture_of_another_size_than_annotated_is_rejected(folder: Path) -> None:
    images = [{"id": 5, "file_name": "wide.jpg", "width": 640, "height": 480}]
    (folder / "i.json").write_text(json.dumps(coco(images=images)))
    import_as("coco", folder / "i.json", folder.parent / "out")
    assert (
        "say [640, 480], but the image is displayed with [60, 40]"
        in rejected(folder.parent / "out")[0]["reason"]
    )


def test_a_file_of_another_kind_is_refused(folder: Path) -> None:
    for text, why in (
        ("[]", "not in COCO's format"),
        ("{", "not JSON"),
        ('{"images": [{}]}', "images must be"),
    ):
        (folder / "i.json").write_text(text)
        with pytest.raises(ValueError, match=why):
            import_as("coco", folder / "i.json", folder.parent / "out")


@given(st.integers(1, 6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_masks_of_runs_are_read_column_by_column(height, width, rng):
    mask = np.array([[rng.random() < 0.5 for _ in range(width)] for _ in range(height)])
    flat, runs, value = mask.T.reshape(-1), [0], False
    for pixel in flat:
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    given_runs = {"size": [height, width], "counts": runs}
    assert (decode_runs(given_runs, (width, height)) == mask).all()
    assert (decode_runs({**given_runs, "counts": as_text(runs)}, (width, height)) == mask).all()


def as_text(runs: list[int]) -> str:
    """The inverse, written from the description: differences, five bits at a time, sign in the fifth."""
    text = ""
    for k, run in enumerate(runs):
        value = run - runs[k - 2] if k > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            more = not (value == 0 and not bits & 16) and not (value == -1 and bits & 16)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


# --- VOC ---


def voc(*objects: tuple[str, int, int, int, int], name: str = "wide.jpg") -> str:
    parts = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for label, a, b, c, d in objects
    )
    return f"<annotation><filename>{name}</filename>{parts}</annotation>"


def test_voc_boxes_count_from_one(folder: Path) -> None:
    (folder / "a.xml").write_text(voc(("cup", 1, 1, 60, 40), ("dog", 11, 11, 20, 20), ("cup", 2, 2, 3, 3)))
    import_as("voc", folder, folder.parent / "out")
    found = by_id(folder.parent / "out")
    assert list(found) == ["a/cup", "a/dog"]
    assert [region.box for region in found["a/cup"].regions.values()] == [(0, 0, 60, 40), (1, 1, 3, 3)]


def test_voc_splits_are_those_of_its_lists(tmp_path: Path) -> None:
    root = tmp_path / "VOC2012"
    picture(root / "JPEGImages", "wide.jpg")
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, split in (("a", "train"), ("b", "val")):
        (root / f"Annotations/{name}.xml").write_text(voc(("cup", 1, 1, 9, 9)))
        (root / f"ImageSets/Main/{split}.txt").write_text(f"{name}\n")
    report = import_as("voc", root, tmp_path / "out")
    assert [example.id for example in examples(tmp_path / "out/val")] == ["b/cup"]
    assert list(report.splits) == ["train", "val"]


def test_xml_that_could_grow_or_is_none_is_rejected_alone(folder: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY b "boom">]><annotation>&b;</annotation>'
    texts = {"a": bomb, "b": "<annotation>", "c": voc(("cup", 1, 1, 9, 9)), "d": voc(("cup", 1, 1, 9, "x"))}
    for name, text in texts.items():
        (folder / f"{name}.xml").write_text(text)
    import_as("voc", folder, folder.parent / "out")
    reasons = {line["id"]: line["reason"] for line in rejected(folder.parent / "out")}
    assert set(reasons) == {"a", "b", "d"}
    for name, why in (("a", "declarations"), ("b", "no XML"), ("d", "an object has the bndbox")):
        assert why in reasons[name]


# --- RefCOCO ---


def test_every_expression_of_a_row_is_an_example(folder: Path) -> None:
    row = {"question_id": 3, "image": "wide.jpg", "answer": ["left cup", "the cup"], "bbox": [10, 10, 20, 20]}
    import_as("refcoco", write_rows(folder / "x.jsonl", [row]), folder.parent / "out")
    first, second = examples(folder.parent / "out")
    assert (first.id, second.id) == ("3#0/0", "3#0/1")
    assert trace_of(second).calls[0].query == "the cup"
    assert first.regions["<|region_1|>"].box == (10, 10, 30, 30)


def refs(folder: Path) -> None:
    (folder / "instances.json").write_text(
        json.dumps(
            {
                "images": [{"id": 9, "file_name": "wide.jpg"}],
                "annotations": [{"id": 4, "bbox": [1, 2, 10, 10]}],
            }
        )
    )


def test_references_are_joined_with_their_instances_by_split(folder: Path) -> None:
    refs(folder)
    ref = {"ref_id": 1, "ann_id": 4, "image_id": 9, "sentences": [{"sent": "cup"}], "split": "train"}
    (folder / "refs.json").write_text(json.dumps([ref, {**ref, "ref_id": 2, "split": "testA"}]))
    report = import_as("refcoco", folder, folder.parent / "out")
    assert list(report.splits) == ["train", "testA"]
    [example] = examples(folder.parent / "out/testA")
    assert example.regions["<|region_1|>"].box == (1, 2, 11, 12)


def test_a_pickle_is_refused_with_the_command_that_converts_it(folder: Path) -> None:
    refs(folder)
    (folder / "refs(unc).p").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"is a pickle, which can run code .* write it as JSON with: python -c"
    ):
        import_as("refcoco", folder, folder.parent / "out")


# --- Visual CoT ---


def test_visual_cot_looks_at_all_boxes_thinks_and_answers(folder: Path) -> None:
    row = {
        "question": "Who wears it?",
        "answer": "the man",
        "image": "wide.jpg",
        "bboxs": [[1, 2, 30, 30], [40, 4, 50, 14]],
        "thought": "1. Find the shirt.",
        "dataset": "gqa",
    }
    import_as("visual_cot", write_rows(folder / "x.jsonl", [row]), folder.parent / "out")
    [example] = examples(folder.parent / "out")
    assert example.answer == "the man"
    assert example.source == "visual_cot:x.jsonl/gqa"
    text = example.messages[1].content
    assert text.startswith("<think> detect(")
    assert text.endswith("\n1. Find the shirt. </think><answer>the man</answer>")
    assert len(example.regions) == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"answer": " "}, "the row has no answer"),
        ({"bboxs": []}, "bboxs must be a list of boxes"),
        ({"image": None}, "the image is None"),
    ],
)
def test_incomplete_rows_of_visual_cot_are_rejected(folder: Path, change: dict[str, Any], why: str) -> None:
    row = {"question": "q", "answer": "a", "image": "wide.jpg", "bboxs": [[1, 1, 5, 5]]} | change
    import_as("visual_cot", write_rows(folder / "x.jsonl", [row]), folder.parent / "out")
    assert why in rejected(folder.parent / "out")[0]["reason"]


# --- PixMo-points ---


def test_pixmo_points_are_hundredths_on_the_image_of_that_hash(folder: Path) -> None:
    data = (folder / "wide.jpg").read_bytes()
    name = hashlib.sha256(data).hexdigest()
    (folder / f"{name}.png").write_bytes(data)
    rows = [
        {"image_url": "http://x/y.jpg", "image_sha256": name, "label": "cups", "points": points}
        for points in ([{"x": 50, "y": 50}, {"x": 100, "y": 100}], [])
    ]
    import_as("pixmo_points", write_rows(folder / "x.jsonl", rows), folder.parent / "out")
    two, none = examples(folder.parent / "out")
    assert [region.box for region in two.regions.values()] == [(30, 20, 31, 21), (59, 39, 60, 40)]
    assert none.regions == {}
    assert none.messages[1].content.endswith(("<answer>0</answer>", "<answer>none</answer>"))


def test_images_of_pixmo_that_are_missing_or_have_changed_are_named(folder: Path) -> None:
    name = "0" * 64
    rows = [
        {"image_sha256": name, "label": "cups", "points": []},
        {"image_sha256": "x/../y", "label": "a", "points": []},
    ]
    source = write_rows(folder / "x.jsonl", rows)
    import_as("pixmo_points", source, folder.parent / "out")
    reasons = [line["reason"] for line in rejected(folder.parent / "out")]
    assert "there is no image 000" in reasons[0]
    assert "no SHA-256" in reasons[1]
    (folder / f"{name}.jpg").write_bytes((folder / "wide.jpg").read_bytes())
    import_as("pixmo_points", source, folder.parent / "out2")
    assert "has changed: its SHA-256 is" in rejected(folder.parent / "out2")[0]["reason"]
