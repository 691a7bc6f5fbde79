"""The markup of reasoning traces: every mark that is written into a trace, or matched in one, stands here.

Source of the format: jun297/v1, v1/processor.py, lines 239-262 and 398-424.
"""

from __future__ import annotations

import re

CALL = "detect("
"""Begins a call."""
CALL_END = '"])'
"""Ends a call behind its last object."""
REGION, REGION_END = "<region>", "</region>"
"""Around what stands for a region: its box, its pointers, or both."""
ANSWER, ANSWER_END = "<answer>", "</answer>"

OBJECT_START, REGION_START = "<obj", "<|region_"
"""How the names of objects and of regions begin."""
OBJECT_NAME = re.compile(rf"{OBJECT_START}\w*>")
REGION_NAME = re.compile(rf"{re.escape(REGION_START)}\w+\|>")
POINTER_BEGIN = "<|copy_"
"""How a pointer begins as text."""
POINTER = re.compile(rf"{re.escape(POINTER_BEGIN)}[0-9]{{1,9}}\|>")
POINTER_LIMIT = 10**9
"""Indices of pointers are below this."""
_ANSWER = re.compile(rf"{ANSWER}(.*?){ANSWER_END}", re.DOTALL)
_UNFINISHED_ANSWER = re.compile(rf"{ANSWER}(.*?)(?:{ANSWER_END}|\Z)", re.DOTALL)


def object_name(number: int) -> str:
    """`<obj1>`: the name of an object within a trace."""
    return f"{OBJECT_START}{number}>"


def region_name(suffix: int | str) -> str:
    """`<|region_1|>`: the name under which a region is given beside a text."""
    return f"{REGION_START}{suffix}|>"


def pointer_text(token: int) -> str:
    """`<|copy_7|>`: the pointer to image token 7, as text."""
    return f"{POINTER_BEGIN}{token}|>"


def answer_text(answer: str) -> str:
    """The answer between its marks."""
    return f"{ANSWER}{answer}{ANSWER_END}"


def find_answers(text: str, unfinished: bool = False) -> list[str]:
    """What stands between the marks of answers, in order; with `unfinished`, a last one may lack its end."""
    return (_UNFINISHED_ANSWER if unfinished else _ANSWER).findall(text)
