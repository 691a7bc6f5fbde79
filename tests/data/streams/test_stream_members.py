"""Samples whose members have names of their own, as examples."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.stream_cases import sample

from v1lit.data.example import Example, ExampleError, Message
from v1lit.data.streams.members import Members, to_pixels

TALK = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cup."}]
SIZE = (40, 32)
"""Of the image in every sample."""


def members(record: object = None, **others: bytes | str) -> dict[str, bytes]:
    return {name.partition(".")[2]: data for name, data in sample("k", record, **others)}


def example(mapping: dict[str, Any], record: object = None, **others: bytes | str) -> Example:
    return Members.read(mapping).example("k", members(record, **others))


def texts(result: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in result.messages]


def test_a_caption_answers_a_fixed_prompt() -> None:
    result = example({"reply": "txt", "prompt": "What is there?"}, txt="A cup.\n", cls="3")
    assert (result.id, result.images[0].size) == ("k", SIZE)
    assert texts(result) == [("user", "<image>\nWhat is there?"), ("assistant", "A cup.")]


def test_question_and_answer_are_members_or_keys_of_one() -> None:
    mapping = {"question": "json:qa.question", "reply": "json:qa.answer", "answer": "json:qa.answer"}
    result = example(mapping, {"qa": {"question": "How many?", "answer": 3}})
    assert texts(result) == [("user", "<image>\nHow many?"), ("assistant", "3")]
    assert result.answer == "3"
    assert example({"question": "q.txt", "reply": "a.txt"}, **{"q.txt": "Q?", "a.txt": "A"}).messages[
        0
    ] == Message("user", "<image>\nQ?")


@pytest.mark.parametrize(
    "talk",
    [TALK, [{"role": "user", "content": "<image> What is it?"}, {"role": "assistant", "content": "A cup."}]],
)
def test_conversations_are_those_of_either_kind(talk: list[dict[str, str]]) -> None:
    result = example({"conversation": "json:conversations"}, {"conversations": talk})
    assert [message.role for message in result.messages] == ["user", "assistant"]
    assert result.messages[0].content in ("<image>\nWhat is it?", "<image> What is it?")


def test_an_image_is_the_first_of_several_kinds_or_one_of_several() -> None:
    png = {"png": members()["jpg"]}
    assert (
        len(Members.read({"image": "png;jpg", "reply": "txt"}).example("k", {**png, "txt": b"A"}).images) == 1
    )
    two = {"0.jpg": png["png"], "1.jpg": png["png"], "txt": b"A"}
    result = Members.read({"image": ["0.jpg", "1.jpg"], "reply": "txt"}).example("k", two)
    assert len(result.images) == 2
    assert result.messages[0].content.startswith("<image>\n<image>\n")
    result = Members.read({"image": [], "reply": "txt"}).example("k", {"txt": b"A"})
    assert result.images == ()


# ------------------------------------------------------------------ boxes


@pytest.mark.parametrize(
    ("form", "units", "box"),
    [
        ("xyxy", "pixels", [10, 8, 30, 24]),
        ("xywh", "pixels", [10, 8, 20, 16]),
        ("cxcywh", "pixels", [20, 16, 20, 16]),
        ("xyxy", "0..1", [0.25, 0.25, 0.75, 0.75]),
        ("xywh", "0..1", [0.25, 0.25, 0.5, 0.5]),
        ("cxcywh", "0..1", [0.5, 0.5, 0.5, 0.5]),
        ("xyxy", "0..1000", [250, 250, 750, 750]),
        ("cxcywh", "0..1000", [500, 500, 500, 500]),
    ],
)
def test_boxes_of_every_form_become_pixels(form: Any, units: Any, box: list[float]) -> None:
    assert to_pixels(box, form, units, SIZE) == (10, 8, 30, 24)
    mapping = {
        "reply": "txt",
        "boxes": "json:box",
        "query": "json:what",
        "box_format": form,
        "box_units": units,
    }
    result = example(mapping, {"box": box, "what": 'the "red" cup'}, txt="There.")
    assert result.regions["<|region_1|>"].box == (10, 8, 30, 24)
    call = 'detect(query="the \\"red\\" cup", objects=["<obj1><|region_1|>"])'
    assert result.messages[1].content == f"{call}\nThere."


def test_rounding_is_cut_off_and_more_is_not() -> None:
    assert to_pixels([-0.01, 0, 1.0000001, 1.01], "xyxy", "0..1", SIZE) == (0, 0, 40, 32)
    assert to_pixels([0, 0, 41, 32], "xyxy", "pixels", SIZE) == (0, 0, 40, 32)
    assert to_pixels([0, 0, 44, 32], "xyxy", "pixels", SIZE) == (0, 0, 44, 32)


@pytest.mark.parametrize(
    "boxes",
    [
        {"<|region_1|>": [1, 2, 9, 9], "region_2": [3, 4, 9, 9]},
        {"1": [1, 2, 9, 9], "2": [3, 4, 9, 9]},
        [[1, 2, 9, 9], [3, 4, 9, 9]],
    ],
)
def test_boxes_are_named_or_numbered(boxes: object) -> None:
    talk = [
        TALK[0],
        {"from": "gpt", "value": 'detect(query="it", objects=["<obj1><|region_1|>", "<obj2><|region_2|>"])'},
    ]
    result = example({"conversation": "json:talk", "boxes": "json:boxes"}, {"talk": talk, "boxes": boxes})
    assert [region.box for region in result.regions.values()] == [(1, 2, 9, 9), (3, 4, 9, 9)]


def test_a_star_goes_through_a_list() -> None:
    record = {"objects": [{"bbox": [1, 2, 3, 4], "name": "a"}, {"bbox": [5, 6, 7, 8]}], "what": "cups"}
    mapping = {"reply": "txt", "boxes": "json:objects.*.bbox", "box_format": "xywh", "query": "json:what"}
    result = example(mapping, record, txt="Two.")
    assert [region.box for region in result.regions.values()] == [(1, 2, 4, 6), (5, 6, 12, 14)]


# ------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("mapping", "record", "told"),
    [
        ({"reply": "caption"}, None, "there is no member caption; there are: jpg, json, txt"),
        ({"reply": "txt", "image": "png"}, None, "there is no member png"),
        ({"reply": "json:a.b"}, {"a": {}}, "json.a has no key 'b'"),
        ({"reply": "json:a"}, {"a": [1]}, "json, key a is list instead of text"),
        ({"reply": "json:a.*"}, {"a": 1}, "json.a is int instead of a list"),
        ({"conversation": "json:a"}, {"a": {}}, "the conversation is dict instead of a list"),
        ({"conversation": "json:a"}, {"a": [{"from": "bot", "value": "x"}]}, "message 1 is"),
        ({"conversation": "json:a"}, {"a": TALK[:1]}, "turns must be user and assistant"),
        ({"reply": "txt", "boxes": "json:a", "query": "txt"}, {"a": [1, 2, 3]}, "instead of four numbers"),
        (
            {"reply": "txt", "boxes": "json:a", "query": "txt"},
            {"a": [9, 2, 3, 4]},
            "the box of <|region_1|>, [",
        ),
        ({"reply": "txt", "boxes": "json:a", "query": "txt"}, {"a": [0, 0, 90, 9]}, "reaches outside"),
        ({"reply": "txt", "boxes": "json:a"}, {"a": [1, 2, 3, 4]}, "the text never names it"),
    ],
)
def test_a_sample_of_another_form_says_what_it_lacks(
    mapping: dict[str, Any], record: object, told: str
) -> None:
    with pytest.raises(ExampleError) as error:
        example(mapping, {} if record is None else record, txt="Yes.")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        ([], "give a mapping"),
        ({}, "must name either a conversation"),
        ({"reply": "txt", "conversation": "json"}, "must name either a conversation"),
        ({"conversation": "json", "question": "txt"}, "question is 'txt'; it goes with a reply"),
        ({"reply": "txt", "query": "txt"}, "name the boxes as well"),
        (
            {"reply": "txt", "boxs": "json"},
            "boxs is 'json'; no such option; did you mean 'boxes'? allowed: image",
        ),
        ({"reply": "txt", "box_format": "yxyx"}, "allowed: xyxy, xywh, cxcywh"),
        ({"reply": "txt", "box_units": "0..100"}, "allowed: pixels, 0..1, 0..1000"),
        ({"reply": ".txt"}, "reply is '.txt'; give the extension of a member"),
        ({"reply": "json:"}, "reply is 'json:'"),
        ({"reply": 3}, "reply is 3"),
    ],
)
def test_a_mapping_is_checked_by_name(mapping: Any, told: str) -> None:
    with pytest.raises(ValueError, match=r"^data\.source\.options\.members") as error:
        Members.read(mapping)
    assert told in str(error.value)
