"""What cannot be encoded or collated is refused with what was given."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from helpers.shard_cases import make

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode import encoding
from v1lit.data.encode.batch import collate
from v1lit.data.encode.encoding import EncodingError, encode
from v1lit.data.encode.mapping import ExampleMap
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.example import Example, Message


@pytest.fixture(scope="module")
def processor() -> Processor:
    return load_processor(BackboneConfig())


def test_a_batch_is_padded_on_one_of_two_sides(processor: Processor) -> None:
    encoded = encode(make("a"), processor, EncodingConfig())
    with pytest.raises(ValueError, match="'middle'"):
        collate([encoded], 0, side="middle")  # type: ignore[arg-type]


def test_a_prompt_that_is_too_long_is_refused_with_its_length(processor: Processor) -> None:
    with pytest.raises(EncodingError, match=r"prompt of 'q' has \d+ tokens, more than the 8"):
        encode_prompt(
            "q", [Message("user", "Where is it? " * 5)], [], processor, EncodingConfig(max_tokens=8)
        )


def test_a_mistake_that_is_not_about_an_image_is_not_told_as_one(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor refuses an image whose size is fine: its own words are kept."""

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("the processor's own words")

    monkeypatch.setattr(Processor, "images", refuse)
    with pytest.raises(ValueError, match="the processor's own words") as caught:
        encoding.encode(make("a"), processor, EncodingConfig())
    assert not isinstance(caught.value, EncodingError)


def test_an_image_that_the_backbone_refuses_is_named(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("too thin")

    monkeypatch.setattr(Processor, "images", refuse)
    monkeypatch.setattr(Processor, "patch_map", refuse)
    with pytest.raises(EncodingError, match="image 0 of example 'b': too thin"):
        encoding.encode(replace(make("a"), id="b"), processor, EncodingConfig())


def draw(example: Example, rng: np.random.Generator) -> Example:
    """A map that draws."""
    return example


def test_a_map_that_draws_needs_to_know_which_example_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "drawing", ModuleType("drawing"))
    monkeypatch.setattr(sys.modules["drawing"], "draw", draw, raising=False)
    mapping = ExampleMap("drawing.draw", 0)
    assert mapping.random
    with pytest.raises(ValueError, match=r"drawing\.draw is random"):
        mapping(make("a"), "shard", None)
