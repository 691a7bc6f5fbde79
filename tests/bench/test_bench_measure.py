"""Contenders take turns, peaks are seen, and a process that fails says why."""

from __future__ import annotations

import sys

import measure
import pytest
import torch

MIB = 2**20


def test_contenders_take_turns() -> None:
    order: list[str] = []
    found = measure.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert "".join(order) == "ab" + "abab"
    measure.alternate({"c": lambda: order.append("c")}, repeats=1, warm=False)
    assert order.count("c") == 1
    assert all(0 < taken.least <= taken.median for taken in found.values())


def test_no_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats is 0"):
        measure.alternate({"a": lambda: None}, repeats=0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can set the high-water mark back")
def test_a_peak_that_is_gone_again_is_seen() -> None:
    def work() -> None:
        torch.ones(96 * MIB, dtype=torch.uint8)

    assert 90 * MIB < measure.peak_above(work) < 160 * MIB
    assert measure.peak_above(lambda: None) < 8 * MIB  # the peak of before is forgotten


def test_the_last_line_of_a_process_is_its_result() -> None:
    code = "print('warming up'); print('{\"peak\": 3}')"
    assert measure.in_subprocess(["-c", code]) == {"peak": 3}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit('too little memory')", "too little memory"),
        ("import os; os._exit(7)", "exit code 7"),
        ("print(3)", "printed no result"),
        ("print('hello')", "printed no result"),
        ("pass", "printed no result"),
        ("import time; time.sleep(60)", "stopped after 1 s"),
    ],
)
def test_a_process_without_a_result_says_why(code: str, reason: str) -> None:
    with pytest.raises(measure.MeasureError, match=reason):
        measure.in_subprocess(["-c", code], timeout=1)
