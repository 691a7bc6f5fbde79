"""The shipped tokenizer is small, loses nothing, keeps traces short, and is what its tool makes."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v1lit.backbones import get_backbone, list_backbones
from v1lit.backbones.tiny import tiny_tokenizer, token_id

pytestmark = pytest.mark.dependencies

TOKENIZER = tiny_tokenizer()
SHIPPED = files("v1lit.backbones").joinpath("tiny_tokenizer.json")
TRACE = (
    '<think> I look for the red circle. detect(query="the red circle", objects=["<obj1><region>'
    '[0.10, 0.20, 0.30, 0.40]</region>"])\n<obj1> lies top left. </think><answer>top left</answer>'
)


def encode(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


@given(st.text())
def test_any_text_survives(text: str) -> None:
    assert TOKENIZER.decode(encode(text), clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    "text", ["a  b\t\n ", " .,!?", "Ünï 日本 🦝 \u200b\x00", TRACE, "</s> <image>", "0.123 1.00 12"]
)
def test_awkward_text_survives(text: str) -> None:
    assert TOKENIZER.decode(encode(text), clean_up_tokenization_spaces=False) == text


def test_it_is_small() -> None:
    assert len(TOKENIZER) <= 1280
    assert len(SHIPPED.read_bytes()) < 100_000


def test_traces_are_short() -> None:
    assert len(encode(TRACE)) <= 42
    assert len(encode("How many red circles are there?")) <= 7


@pytest.mark.parametrize("name", list_backbones())
def test_every_mark_of_a_chat_format_is_one_special_token(name: str) -> None:
    chat = get_backbone(name).chat
    tokenizer = tiny_tokenizer(chat.stop, chat.single)
    marks = [*chat.single, *chat.start.split(), *(mark.strip() for mark in chat.image)]
    marks += [mark for mark in ("<|im_start|>",) if mark in chat.user[0]]
    for mark in filter(None, marks):
        ids = tokenizer(mark, add_special_tokens=False)["input_ids"]
        assert ids == [token_id(tokenizer, mark)]
        assert mark in tokenizer.backend_tokenizer.get_added_tokens_decoder()[ids[0]].content
        assert mark not in tokenizer.decode(ids, skip_special_tokens=True)


def test_marks_that_the_file_lacks_get_ids_behind_its_own() -> None:
    tokenizer = tiny_tokenizer("<stop>", ["<s>", "<new>", "<stop>"])
    assert [token_id(tokenizer, mark) for mark in ("<new>", "<stop>")] == [1280, 1281]
    assert tokenizer.eos_token_id == 1281
    assert token_id(tokenizer, "<s>") == token_id(TOKENIZER, "<s>")
    assert tokenizer(TRACE)["input_ids"] == encode(TRACE)


def test_a_token_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"no token '<\|nothing\|>'"):
        token_id(TOKENIZER, "<|nothing|>")


def test_the_tool_makes_exactly_the_shipped_file(tmp_path: Path) -> None:
    tool = Path(__file__).resolve().parents[2] / "tools" / "make_tiny_tokenizer.py"
    out = tmp_path / "tokenizer.json"
    subprocess.run([sys.executable, str(tool), str(out)], check=True, timeout=60, capture_output=True)
    assert out.read_bytes() == SHIPPED.read_bytes()
