"""An example is valid or is not made; members and back is the same; what a shard says is not trusted."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.pictures import encoded
from hypothesis import given, settings
from hypothesis import strategies as st

from v1lit.data.example import Example, ExampleError, Message, key_of
from v1lit.data.example.example import EDGE_TOLERANCE, load_json
from v1lit.data.images import EncodedImage, read_header
from v1lit.grounding.region import Region


def picture(format: str = "JPEG", size: tuple[int, int] = (64, 48)) -> EncodedImage:
    return read_header(encoded(size, (90, 120, 200), format))


PICTURES = [picture("JPEG"), picture("PNG", (30, 90)), picture("WEBP", (40, 40)), picture("BMP", (28, 28))]
CALL = 'detect(query="cells", objects=["<obj1><|region_1|>"])'


def example(**changes: Any) -> Example:
    fields: dict[str, Any] = {
        "id": "a_1",
        "images": (PICTURES[0],),
        "messages": (Message("user", "<image>\nWhere?"), Message("assistant", f"Look: {CALL} There.")),
        "regions": {"<|region_1|>": Region.from_box((1, 2, 30, 40))},
        "answer": "there",
        "source": "test",
    }
    return Example(**(fields | changes))


def turns(*contents: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in contents)


ASK = ("user", "<image>\nWhere?")
SAY = ("assistant", f"Look: {CALL}")
BOX = Region.from_box((1, 2, 30, 40))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": ""}, "id is empty"),
        ({"id": 3}, "the id is 3 instead of text"),
        ({"id": "\ud800"}, "surrogate"),
        ({"answer": 5}, "the answer is 5 instead of text"),
        ({"messages": ()}, "given: none"),
        ({"messages": turns(ASK)}, "ending with the assistant; given: user"),
        ({"messages": turns(SAY, ASK)}, "alternating"),
        ({"messages": turns(ASK, SAY, SAY)}, "given: user, assistant, assistant"),
        ({"messages": turns(ASK, SAY, ("system", "x"))}, "alternating"),
        ({"messages": turns(ASK, ("gpt", "x"))}, "unknown role 'gpt'"),
        ({"messages": turns(ASK, ("assistant", " \n"))}, r"assistant's text \(message 2\) is empty"),
        ({"messages": [{"role": "user"}]}, "must be Message objects"),
        ({"messages": turns(("user", "Where?"), SAY)}, "hold 0 <image> markers, but there are 1 images"),
        ({"images": ()}, "hold 1 <image> markers, but there are 0 images"),
        ({"images": (b"bytes",)}, "must be EncodedImage"),
        ({"regions": {}}, r"the text names <\|region_1\|>, but no such region"),
        (
            {"regions": {"<|region_1|>": BOX, "<|region_2|>": BOX}},
            r"<\|region_2\|> is given, but the text never",
        ),
        ({"regions": {"<|region_1|>": BOX, "two": BOX}}, "'two' is not of the form"),
        ({"regions": {"<|region_1|>": BOX.at(1)}}, "lies in image 1, counted from 0, but there are 1"),
        ({"regions": {"<|region_1|>": Region.from_box((1, 2, 65, 40))}}, "outside of its image of 64 x 48"),
        ({"regions": {"<|region_1|>": Region.from_mask(np.ones((5, 5), bool))}}, "has 5 x 5 pixels, but its"),
    ],
)
def test_broken_rules_are_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExampleError, match=reason) as caught:
        example(**changes)
    assert caught.value.reason in str(caught.value)


def test_valid_forms() -> None:
    assert example().key == "a_1"
    example(messages=turns(("system", "Be brief."), ASK, SAY, ("user", "Sure?"), ("assistant", "Yes.")))
    example(images=[], messages=turns(("user", "1 + 1?"), ("assistant", "2")), regions={}, answer=None)
    two = turns(("user", "<image>\n<image>\nWhich?"), SAY)
    example(images=PICTURES[:2], messages=two, regions={"<|region_1|>": Region.from_box((0, 50, 30, 90), 1)})


def test_the_error_survives_a_pipe() -> None:
    error = pickle.loads(pickle.dumps(ExampleError("a", "bad")))
    assert (error.id, error.reason, str(error)) == ("a", "bad", "example 'a': bad")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(
    lambda text: "<image>" not in text and "<|region_" not in text
)


@st.composite
def regions_in(draw: st.DrawFn, image: int, size: tuple[int, int]) -> Region:
    def span(end: int) -> tuple[float, float]:
        numbers = st.one_of(st.integers(0, end), st.floats(0, end, allow_subnormal=False))
        low, high = sorted((draw(numbers), draw(numbers)))
        return (low, high) if low < high else (0, end)

    (x1, x2), (y1, y2) = span(size[0]), span(size[1])
    kind = draw(st.sampled_from(["box", "polygon", "mask"]))
    if kind == "box":
        return Region.from_box((x1, y1, x2, y2), image)
    if kind == "polygon":
        return Region.from_polygon([(x1, y1), (x2, y1), (x2, y2)], image)
    mask = np.zeros((size[1], size[0]), bool)
    mask[int(y1) : int(y1) + 1, int(x1) : int(x2) + 1] = True
    mask[0, 0] = True
    return Region.from_mask(mask, image)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    images = draw(st.lists(st.sampled_from(PICTURES), max_size=3))
    count = draw(st.integers(0, 3)) if images else 0
    regions = {}
    for number in range(1, count + 1):
        image = draw(st.integers(0, len(images) - 1))
        regions[f"<|region_{number}|>"] = draw(regions_in(image, images[image].size))
    messages = [Message("system", draw(texts))] if draw(st.booleans()) else []
    messages.append(Message("user", "<image>\n" * len(images) + draw(texts)))
    messages.append(Message("assistant", "x" + draw(texts) + "".join(regions)))
    return Example(
        id=draw(texts.filter(bool)),
        images=tuple(images),
        messages=tuple(messages),
        regions=regions,
        answer=draw(st.none() | texts),
        source=draw(texts),
    )


@settings(max_examples=150, deadline=None)
@given(examples())
def test_members_and_back_is_the_same_example(original: Example) -> None:
    members = original.to_members()
    assert Example.from_members(original.key, members) == original
    assert Example.from_members(original.key, members).to_members() == members


@given(texts, texts)
def test_keys_are_plain_and_differ_where_ids_differ(first: str, second: str) -> None:
    key = key_of(first)
    assert key.isascii()
    assert not set(key) & set("./\\ \n\x00")
    assert (key == key_of(second)) == (first == second)


def test_members_are_named_by_image() -> None:
    assert list(example().to_members()) == ["json", "jpg"]
    two = example(images=PICTURES[:2], messages=turns(("user", "<image><image>"), SAY))
    assert list(two.to_members()) == ["json", "0.jpg", "1.png"]


def test_image_bytes_stay_unchanged() -> None:
    assert example().to_members()["jpg"] == PICTURES[0].data


def tampered(**changes: Any) -> dict[str, bytes]:
    members = example().to_members()
    record = json.loads(members["json"]) | changes
    return members | {"json": json.dumps(record).encode()}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({}, "json member is missing"),
        ({"json": b"\xff\xfe"}, "not JSON"),
        ({"json": b"[]"}, "must be a JSON object, not list"),
        ({"json": b"[" * 100_000}, "nested too deeply"),
        ({"json": b'{"id": "a_1", "id": "a_1"}'}, "'id' is given twice"),
        ({"json": b'{"id": NaN}'}, "NaN is not a usable number"),
        (tampered(id="b"), "has the id 'b', but the shard member is called 'a_1'"),
        (tampered(id=None), "has the id None"),
        (tampered(messages={}), "messages must be a JSON list"),
        (tampered(messages=[1]), "a message must be a JSON object"),
        (tampered(messages=[{"role": "user"}]), "role and content of a message must be text"),
        (tampered(regions=[]), "regions must be a JSON object"),
        (tampered(regions={"<|region_1|>": [1, 2, 3]}), r"<\|region_1\|>: a box is four numbers"),
        (tampered(regions={"<|region_1|>": [9, 9, 1, 1]}), "x1 < x2"),
        (tampered(regions={"<|region_1|>": [0, 0, 9, 999]}), "outside of its image"),
        (tampered(answer=["x"]), "the answer is"),
        (tampered(images=[]), "members that the json member does not mention: jpg"),
        (tampered(images=[{"file_ext": "pyd", "size": [64, 48]}]), "has file_ext 'pyd'"),
        (tampered(images=[{"file_ext": ["jpg"], "size": [64, 48]}]), "has file_ext"),
        (tampered(images=[{"file_ext": "png", "size": [64, 48]}]), "the member 'png' of image 0 is missing"),
        (
            tampered(images=[{"file_ext": "jpg", "size": [48, 64]}]),
            r"said to be \[48, 64\] pixels but is \[64, 48\]",
        ),
        (example().to_members() | {"jpg": b"no"}, "image 0: the image is not a readable"),
        (example().to_members() | {"1.png": PICTURES[1].data}, "does not mention: 1.png"),
    ],
)
def test_what_members_say_is_checked(members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(ExampleError, match=reason) as caught:
        Example.from_members("a_1", members)
    assert caught.value.id == "a_1"


any_json = st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(any_json)
def test_any_other_json_is_an_example_error(value: Any) -> None:
    valid = json.loads(example().to_members()["json"])
    for member in (value, {"id": "a_1", "messages": value}, valid | {"regions": value}):
        with pytest.raises(ExampleError):
            Example.from_members("a_1", {"json": json.dumps(member).encode()})


def test_equal_examples_are_equal() -> None:
    assert example() == example()
    assert example() != replace(example(), answer="elsewhere")


def test_nan_can_be_let_through_for_a_later_check() -> None:
    assert load_json("[Infinity]", allow_nan=True) == [float("inf")]


def test_what_rounding_adds_at_the_edge_is_taken_off() -> None:
    width, height = PICTURES[0].size
    name = "<|region_1|>"

    def fitted(region: Region) -> Region:
        return example(regions={name: region}).regions[name]

    out = Region.from_box((-1e-7, 2, width + 1e-7, height + EDGE_TOLERANCE))
    assert fitted(out) == Region.from_box((0, 2, width, height))
    corners = [(0, -1e-9), (width + 1e-4, 5), (3, height)]
    assert fitted(Region.from_polygon(corners)) == Region.from_polygon([(0, 0), (width, 5), (3, height)])
    with pytest.raises(ExampleError, match=rf"{width}\.02, .* outside of its image of {width} x {height}"):
        fitted(Region.from_box((0, 0, width + 0.02, height)))
    with pytest.raises(ExampleError, match="outside of its image"):
        fitted(Region.from_box((width, 0, width + 1e-7, height)))  # Nothing of it is left.
    with pytest.raises(ExampleError, match=rf"mask of .* has 3 x 2 pixels, but its image {width} x {height}"):
        fitted(Region.from_mask(np.ones((2, 3), bool)))


def test_a_size_as_text_is_told_from_numbers() -> None:
    members = example().to_members()
    record = json.loads(members["json"])
    record["images"][0]["size"] = str(record["images"][0]["size"])
    with pytest.raises(ExampleError, match=r"said to be '\[\d+, \d+\]' pixels but is \[\d+, \d+\]"):
        Example.from_members("a_1", members | {"json": json.dumps(record).encode()})
