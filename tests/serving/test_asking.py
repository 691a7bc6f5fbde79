"""Requests in OpenAI's form are read, and what cannot be done is refused by the name of its field."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v1lit.data.example import Message
from v1lit.grounding.region import Region
from v1lit.serving.asking import AskError, read_ask
from v1lit.serving.choice import Sampling
from v1lit.serving.limits import ServerLimits
from v1lit.steering import Steering

LIMITS = ServerLimits(images=2, new_tokens=100)
PNG = "data:image/png;base64,AAAA"


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts) if parts else "Where is it?"}


def body(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [user()], **more}


def test_a_conversation_with_images_and_options() -> None:
    image = {"type": "image_url", "image_url": {"url": PNG, "detail": "auto"}}
    messages = [
        {"role": "developer", "content": "Be <image> brief."},
        user(image, {"type": "text", "text": "Where is <image>?"}),
        {"role": "assistant", "content": "There."},
        user({"type": "text", "text": "And here?"}, image),
    ]
    steer = {"inside": [[0, 0, 9, 9.5]], "max_looks": 2, "queries": ["it"]}
    ask = read_ask(
        body(messages=messages, max_tokens=7, temperature=0.5, seed=3, stop="\n", n=2, stream=True,
             steer=steer, stream_options={"include_usage": True}, user="me", tools=[]),
        LIMITS,
    )  # fmt: skip
    assert ask.messages == (
        Message("system", r"Be <\image> brief."),
        Message("user", "<image>\nWhere is <\\image>?"),
        Message("assistant", "There."),
        Message("user", "And here?<image>\n"),
    )
    assert ask.images == (PNG, PNG)
    assert ask.sampling == Sampling(temperature=0.5, seed=3)
    assert ask.steering == Steering(inside=[Region.from_box((0, 0, 9, 9.5))], max_looks=2, queries=["it"])
    assert (ask.max_tokens, ask.stop, ask.choices, ask.stream, ask.usage) == (7, ("\n",), 2, True, True)


def test_regions_are_named_in_the_words_and_words_are_words_without_them() -> None:
    words = [user({"type": "text", "text": "What is <|region_1|>, <image>?"})]
    ask = read_ask(body(messages=words, regions=[{"box": [0, 0, 9, 9], "image": 1}]), LIMITS)
    assert ask.messages == (Message("user", r"What is <|region_1|>, <\image>?"),)
    assert ask.regions == {"<|region_1|>": Region.from_box((0, 0, 9, 9), 1)}
    assert not ask.coordinates
    named = {"regions": {"<|region_a|>": [1, 2, 3, 4]}, "region_coordinates": True}
    ask = read_ask(body(messages=[user({"type": "text", "text": "<|region_a|>"})], **named), LIMITS)
    assert (list(ask.regions), ask.coordinates) == (["<|region_a|>"], True)
    assert read_ask(body(messages=words), LIMITS).messages[0].content == r"What is <\|region_1|>, <\image>?"


def test_by_default_the_most_likely_tokens_are_taken() -> None:
    ask = read_ask(body(), LIMITS)
    assert (ask.sampling, ask.steering, ask.max_tokens, ask.choices) == (Sampling(), Steering(), 100, 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "body: it is a JSON object"),
        ({}, "messages: it is a list"),
        (body(messages=[]), "messages: it is a list"),
        (body(messages=["x"]), "messages[0]: it is an object"),
        (body(messages=[{"role": "tool", "content": "x"}]), "messages[0].role: one system"),
        (body(messages=[user(), user()]), "messages[1].role: two messages of role 'user'"),
        (body(messages=[{"role": "assistant", "content": "x"}]), "messages[0].role: the assistant answers"),
        (
            body(messages=[user(), {"role": "assistant", "content": "x"}]),
            "messages: the last one is the user's",
        ),
        (body(messages=[user({"type": "input_audio"})]), "messages[0].content[0]: a part is of type"),
        (
            body(messages=[user({"type": "image_url", "image_url": {}})]),
            "messages[0].content[0].image_url: give",
        ),
        (
            body(messages=[user(*[{"type": "image_url", "image_url": PNG}] * 3)]),
            "messages: there are 3 images",
        ),
        (body(max_tokens=0), "max_tokens: it is a whole number from 1 to 100"),
        (body(max_tokens=True), "max_tokens: it is a whole number from 1 to 100"),
        (body(temperature="hot"), "temperature: it is a number from 0 to 2"),
        (body(temperature=float("nan")), "temperature: it is a number from 0 to 2"),
        (body(n=100), "n: it is a whole number from 1 to 8"),
        (body(stop=[""]), "stop: it is a text, or a list of up to 4"),
        (body(stream="yes"), "stream: it is true or false"),
        (body(tools=[{"type": "function"}]), "tools: this server does not offer it"),
        (body(logprobs=True), "logprobs: this server does not offer it"),
        (body(temprature=1), "temprature: there is no such field; did you mean 'temperature'?"),
        (body(steer={"inside": [[0, 0, 1]]}), "steer.inside: a box is four numbers"),
        (body(steer={"inside": [0, 0, 1, 1]}), "steer.inside: it is a list of boxes"),
        (body(regions=[0, 0, 1, 1]), "regions: it is a list of boxes"),
        (body(regions=[[0, 0, 1, 1], [2, 2, 1, 1]]), "regions[1]: a box is x1, y1, x2, y2 with x1 < x2"),
        (body(regions={"it": [0, 0, 1, 1]}), "regions: it: names of regions are like <|region_1|>"),
        (body(regions=[{"circle": [1]}]), "regions[0]: a region is [x1, y1, x2, y2] or an object"),
        (body(region_coordinates=3), "region_coordinates: it is true or false"),
        (body(steer={"max_looks": -1}), "steer.max_looks: -1; give 0 or more"),
        (body(steer={"budget": 1}), "steer.budget: there is no such option"),
        (body(steer={"points": 1}), "steer.points: it is true or false"),
        ({"messages": [user()], "model": 3}, "model: it is a text"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_field(given: Any, said: str) -> None:
    with pytest.raises(AskError) as caught:
        read_ask(given, LIMITS)
    assert str(caught.value).startswith(said)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "model",
    "messages",
    "max_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "stream",
    "steer",
    "regions",
    "seed",
    "tools",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.booleans())
def test_any_json_is_read_or_refused(given: dict[str, Any], with_messages: bool) -> None:
    with contextlib.suppress(AskError):
        read_ask({**given, **({"messages": [user()], "model": "m"} if with_messages else {})}, LIMITS)
