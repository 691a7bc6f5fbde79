"""Marks and words: whatever somebody says can be written, and comes out as it was said."""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
import torch
from hypothesis import example as case
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from v1lit.backbones import list_backbones
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import tokenize
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.example import Example, ExampleError, Message
from v1lit.data.example.marks import IMAGE_MARKER, escape, unescape, words_of
from v1lit.data.images import EncodedImage
from v1lit.grounding.markup import REGION_NAME
from v1lit.grounding.region import Region

MARKUP = [
    *("<image>", "<\\image>", "<\\\\image>", "<|region_1|>", "<\\|region_2|>", "<|region_a|>", "<|copy_3|>"),
    *("<region>", "</region>", "<answer>", "<|im_end|>", "</s>", "<", "\\", "image>", "|region_1|>"),
    *("<|region_", "detect(", "&lt;image&gt;", "\\<image>", "\\\\<|region_1|>"),
]
WORDS = st.lists(
    st.sampled_from(MARKUP) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=8
).map("".join)


@given(WORDS)
def test_escaped_words_hold_no_mark_and_come_back(words: str) -> None:
    escaped = escape(words)
    assert IMAGE_MARKER not in escaped
    assert not REGION_NAME.search(escaped)
    assert unescape(escaped) == words


@given(WORDS)
def test_names_of_regions_can_be_kept(words: str) -> None:
    kept = escape(words, keep_regions=True)
    assert IMAGE_MARKER not in kept
    assert REGION_NAME.findall(kept) == REGION_NAME.findall(words)
    assert list(map(unescape, REGION_NAME.split(kept))) == REGION_NAME.split(words)


def test_text_without_anything_like_a_mark_is_left_alone() -> None:
    text = "a \\<b> \\\\ <img> <images> |region_1|> C:\\image> <\\b>"
    assert escape(text) == unescape(text) == text
    assert words_of(f"<image>\n{escape('Is <image> a tag?')}") == "Is <image> a tag?"


@lru_cache
def processor(family: str) -> Processor:
    return load_processor(BackboneConfig(family))


def spoken(processor: Processor, ids: list[int]) -> str:
    """Ids as text, image tokens left out and every run of pointers as an `@`."""
    text = processor.decode(token for token in ids if token != processor.image_token_id)
    return re.sub(r"<region>(<\|copy_\d+\|>)+</region>", "@", text)


@pytest.mark.parametrize("family", list_backbones())
@given(st.lists(WORDS, min_size=4, max_size=4))
@case(["\\", "<", "<\\", "\\\\"])
@settings(max_examples=60, deadline=None)
def test_a_model_is_shown_what_was_said(family: str, words: list[str]) -> None:
    of = processor(family)
    size, region = (56, 56), Region.from_box((10, 10, 50, 50))
    before, between, after, last = words
    example = Example(
        id="one",
        images=(EncodedImage(b"", "png", size),),
        messages=(
            Message("user", f"{escape(before)}<image>{escape(between)}"),
            Message("assistant", f"so {escape(after)}<|region_1|>{escape(last)}"),
        ),
        regions={"<|region_1|>": region},
    )
    maps = [of.patch_map(size)]
    sequence = tokenize(example, maps, of, EncodingConfig(coordinates=False))
    chat = of.backbone.chat
    user, assistant = chat.marks("user"), chat.marks("assistant")
    system = "" if chat.default_system is None else chat.default_system.join(chat.marks("system"))
    image = "".join(chat.image)
    said = f"{before}{image}{between}".join(user) + f"so {after}@{last}".join(assistant)
    expected = re.sub(r"<region>(<\|copy_\d+\|>)+</region>", "@", chat.start + system + said)
    assert spoken(of, sequence.ids) == expected
    assert sequence.ids.count(of.image_token_id) == len(maps[0])
    assert sum(token >= of.pointer_start for token in sequence.ids) == len(maps[0].tokens(region))


def test_a_prompt_reads_its_messages_in_the_same_way() -> None:
    of = processor("qwen2_5_vl")
    message = Message("user", "<image>" + escape("Is <image> or <|region_1|> a tag?"))
    prompt = encode_prompt("q", [message], [Image.new("RGB", (56, 56))], of, EncodingConfig())
    assert "Is <image> or <|region_1|> a tag?" in of.decode(prompt.input_ids)
    assert int(torch.sum(prompt.input_ids == of.image_token_id)) == len(prompt.patch_maps[0])


@pytest.mark.parametrize(
    ("text", "remedy"), [("the tag <image>", r"write <\image>"), ("<|region_7|>", r"write <\|region_7|>")]
)
def test_the_way_to_write_words_is_named(text: str, remedy: str) -> None:
    with pytest.raises(ExampleError, match=re.escape(remedy)):
        Example(id="a", messages=(Message("user", "What?"), Message("assistant", text)))
    Example(id="a", messages=(Message("user", "What?"), Message("assistant", escape(text))))
