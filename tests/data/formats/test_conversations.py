"""Conversations: LLaVA's, ShareGPT's and those with objects become examples whose boxes are calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.rows import HIGH, import_as, picture, write_rows
from helpers.v1g_cases import content, examples, rejected

from v1lit.data.example import Example
from v1lit.grounding.trace import parse_trace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "in", "wide.jpg")
    picture(tmp_path / "in", "high.jpg", HIGH)
    return tmp_path / "in"


def imported(name: str, folder: Path, row: dict[str, Any], **options: Any) -> Example:
    report = import_as(name, write_rows(folder / "x.json", [row]), folder.parent / "out", **options)
    assert report.failed is None
    [example] = examples(folder.parent / "out")
    return example


def reason(name: str, folder: Path, row: dict[str, Any]) -> str:
    import_as(name, write_rows(folder / "x.json", [row]), folder.parent / "out")
    [line] = rejected(folder.parent / "out")
    return line["reason"]


def told(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]


# --- LLaVA ---


def test_llava_boxes_of_the_padded_image_become_regions_of_the_original(folder: Path) -> None:
    # wide.jpg is 60 x 40, in a square of 60 with 10 above and below.
    row = {"id": "7", "image": "wide.jpg"}
    row["conversations"] = told("<image>\nWhere is this: the red cup?", "Here: [0.5, 0.5, 1.0, 0.75].")
    example = imported("llava", folder, row)
    assert example.id == "7#0"
    assert example.messages[1].content.startswith('Here: detect(query="the red cup?", objects=["<obj1>')
    assert example.messages[1].content.endswith('"]).')
    assert example.regions["<|region_1|>"].box == pytest.approx((30, 20, 60, 35))


def test_several_boxes_are_one_call_and_boxes_of_a_question_are_words(folder: Path) -> None:
    row = {"id": 1, "image": "wide.jpg"}
    row["conversations"] = told(
        "<image>\nWhat is in [0, 0.25, 0.5, 0.5]?",
        "Cups. [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1., 0.6]] and [0.1, 0.5, 0.2, 0.6]",
    )
    example = imported("llava", folder, row)
    assert example.messages[0].content == "<image>\nWhat is in [0.00, 0.12, 0.50, 0.50]?"
    calls = parse_trace(example.messages[1].content).trace.calls
    assert [len(call.objects) for call in calls] == [2, 1]
    assert list(example.regions) == ["<|region_1|>", "<|region_2|>", "<|region_3|>"]


def test_text_rows_and_rows_without_a_marker_are_taken(folder: Path) -> None:
    row = {"id": "t", "conversations": told("What is 2 + 2? [1, 2, 3, 4]", "4, of [1, 2, 3, 4]")}
    example = imported("llava", folder, row)
    assert (example.images, example.messages[1].content) == ((), "4, of [1, 2, 3, 4]")
    row = {"id": "t", "image": "wide.jpg", "conversations": told("What?", "A cup.", "Where?", "There.")}
    other = folder.parent / "other"
    import_as("llava", write_rows(folder / "y.jsonl", [row]), other)
    assert examples(other)[0].messages[0].content == "<image>\nWhat?"
    assert len(examples(other)[0].messages) == 4


def test_ids_that_come_again_are_told_apart(folder: Path) -> None:
    rows = [{"id": "same", "conversations": told("a", str(k))} for k in range(3)]
    import_as("llava", write_rows(folder / "x.json", rows), folder.parent / "out")
    assert [example.id for example in examples(folder.parent / "out")] == ["same#0", "same#1", "same#2"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"conversations": None}, "conversations must be a list of turns, not None"),
        (
            {"conversations": [{"from": "tool", "value": "x"}]},
            "turn 1 is from 'tool'; known speakers are human",
        ),
        ({"conversations": [{"from": "human", "value": 3}]}, "turn 1 has no text (value is 3)"),
        ({"conversations": told("a", "b"), "image": "gone.jpg"}, "'gone.jpg' cannot be read"),
        ({"conversations": told("<image>", "b")}, "1 <image> markers, but there are 0 images"),
        ({"conversations": told("a", "[0.1, 0.1, 2, 2]"), "image": "wide.jpg"}, "outside of the 60x40 image"),
        ({"conversations": told("a", "b"), "videos": ["x.mp4"]}, "the row has videos"),
        ({"conversations": told("a", 'detect(query="x", objects=["<obj1>"])')}, "holds a detect(...) call"),
    ],
)
def test_rows_that_cannot_be_are_rejected_by_name(folder: Path, row: dict[str, Any], why: str) -> None:
    assert why in reason("llava", folder, row)


# --- ShareGPT ---


def test_sharegpt_has_a_system_message_several_images_and_words_only(folder: Path) -> None:
    row = {"system": "Be brief.", "images": ["wide.jpg", "high.jpg"]}
    row["conversations"] = told("<image>and<image>?", "[0.1, 0.1, 0.2, 0.2] <|region_1|>")
    example = imported("sharegpt", folder, row)
    assert [message.role for message in example.messages] == ["system", "user", "assistant"]
    assert [image.size for image in example.images] == [(60, 40), HIGH]
    assert example.regions == {}
    assert example.messages[2].content == "[0.1, 0.1, 0.2, 0.2] <\\|region_1|>"
    assert example.id == "x#0"


# --- messages with objects ---


def spoken(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(texts)]


def test_objects_are_taken_in_order_and_named_by_their_reference(folder: Path) -> None:
    row = {
        "messages": spoken("<image>Describe.", "<ref-object><bbox> and <ref-object><bbox><bbox> play."),
        "images": ["wide.jpg"],
        "objects": {"ref": ["a dog", "two cats"], "bbox": [[1, 2, 30, 40], [5, 5, 9, 9], [12, 6]]},
    }
    example = imported("messages", folder, row)
    trace = parse_trace(example.messages[1].content).trace
    assert [call.query for call in trace.calls] == ["a dog", "two cats"]
    assert [region.box for region in example.regions.values()] == [
        (1, 2, 30, 40),
        (5, 5, 9, 9),
        (12, 6, 13, 7),
    ]
    assert trace.text == "a dog and two cats play."


def test_a_box_without_a_reference_is_looked_for_with_the_question(folder: Path) -> None:
    row = {
        "messages": spoken("<image>Find the sheep", "<bbox>"),
        "images": [
            "wide.jpg",
        ],
        "objects": {"ref": [], "bbox": [[0.5, 0.5, 1, 1]], "bbox_type": "norm1"},
    }
    example = imported("messages", folder, row)
    assert parse_trace(example.messages[1].content).trace.calls[0].query == "Find the sheep"
    assert example.regions["<|region_1|>"].box == (30, 20, 60, 40)


def test_image_id_says_in_which_image_a_box_lies(folder: Path) -> None:
    row = {
        "messages": spoken("<image><image>Find it", "<bbox>"),
        "images": ["wide.jpg", "high.jpg"],
        "objects": {"ref": [], "bbox": [[1, 1, 20, 45]], "image_id": [1]},
    }
    assert imported("messages", folder, row).regions["<|region_1|>"].image == 1


@pytest.mark.parametrize(
    ("objects", "why"),
    [
        ({"bbox": [[1, 1, 2, 2], [1, 1, 3, 3]]}, "1 of 2 boxes have no <bbox> in the text"),
        ({"bbox": []}, "the text has more <bbox> than objects has bbox (0)"),
        ({"bbox": [[1, 1, 2, 2]], "image_id": [4]}, "a box lies in image 4, but the row has 1 images"),
        (
            {"bbox": [[1, 1, 2, 2]], "bbox_type": "norm1000"},
            "bbox_type is 'norm1000'; known are real and norm1",
        ),
        ({"bbox": [[1, 1, 2]]}, "neither a box of four numbers nor a point of two"),
        ({"bbox": [["1", 1, 2, 2]]}, "holds '1', which is no finite number"),
    ],
)
def test_objects_that_do_not_fit_the_text_are_rejected(
    folder: Path, objects: dict[str, Any], why: str
) -> None:
    row = {"messages": spoken("<image>Where?", "<bbox>"), "images": ["wide.jpg"], "objects": objects}
    assert why in reason("messages", folder, row)


# --- what all have in common ---


def test_the_same_rows_as_json_json_lines_and_parquet_give_the_same_examples(folder: Path) -> None:
    rows = [
        {"id": f"r{k}", "image": "wide.jpg", "conversations": told("Where?", "[0.25, 0.25, 0.5, 0.75]")}
        for k in range(5)
    ]
    shards = []
    for suffix in (".json", ".jsonl", ".parquet"):
        out = folder.parent / f"out{suffix}"
        import_as("llava", write_rows(folder / f"x{suffix}", rows), out, max_examples_per_shard=2)
        shards.append([(e.id, e.messages, e.regions["<|region_1|>"].box) for e in examples(out)])
    assert shards[0] == shards[1] == shards[2]


def test_workers_do_not_change_the_bytes(folder: Path) -> None:
    rows = [{"id": k, "image": "wide.jpg", "conversations": told("a", f"{k}")} for k in range(9)]
    rows[4]["image"] = "gone.jpg"
    source = write_rows(folder / "x.json", rows)
    for workers in (1, 2):
        import_as("llava", source, folder.parent / f"w{workers}", workers=workers, max_examples_per_shard=2)
    assert content(folder.parent / "w1") == content(folder.parent / "w2")
    assert rejected(folder.parent / "w1")[0]["row"] == 4


def test_boxes_declared_wrongly_are_reported_also_when_the_import_is_there_already(folder: Path) -> None:
    rows = [
        {"id": k, "image": "wide.jpg", "conversations": told("a", f"[{k / 40}, {k / 40}, 0.97, 0.98]")}
        for k in range(30)
    ]
    source, out = write_rows(folder / "x.json", rows), folder.parent / "out"
    from v1lit.data.importing.box_format import BoxFormat

    for already in (False, True):
        report = import_as("llava", source, out, boxes=BoxFormat())
        assert report.already_done is already
        [doubt] = report.doubts
        assert "they look like xyxy, 0-1 of the original image" in doubt
