"""The marks of traces: written as they are matched, and spelled out in one file only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from v1lit.grounding import markup

PACKAGE = Path(__file__).resolve().parents[2] / "v1lit"
MARKS = (markup.REGION, markup.REGION_END, markup.ANSWER, markup.ANSWER_END, markup.REGION_START, "<|copy_")
"""Calls, `detect(`, may be spoken of in messages; what reads or writes them is found by `CALL`."""


def test_what_is_written_is_what_is_matched() -> None:
    for number in (0, 7, 10**9 - 1):
        assert markup.OBJECT_NAME.fullmatch(markup.object_name(number))
        assert markup.REGION_NAME.fullmatch(markup.region_name(number))
        assert markup.POINTER.fullmatch(markup.pointer_text(number))
    assert markup.find_answers(f"so{markup.answer_text('A')} or{markup.answer_text('B')}") == ["A", "B"]


@pytest.mark.parametrize(("unfinished", "found"), [(False, ["A"]), (True, ["A", "4"])])
def test_an_answer_may_lack_its_end_where_that_is_allowed(unfinished: bool, found: list[str]) -> None:
    assert markup.find_answers(markup.answer_text("A") + markup.ANSWER + "4", unfinished) == found


def texts(tree: ast.Module) -> list[str]:
    """The texts of a module that are no docstrings."""
    inside = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in inside]
    return [node.value for node in constants if isinstance(node.value, str)]


def test_marks_are_spelled_out_in_one_file_only() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name == "markup.py" or "testing" in path.parts:  # which checks with texts of users
            continue
        for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            plain = text.replace("\\", "").replace("<|region_1|>", "")  # the example in messages
            spelled = [mark for mark in MARKS if mark in plain]
            assert not spelled, f"{path.relative_to(PACKAGE)}: {text!r}; see grounding/markup.py"
