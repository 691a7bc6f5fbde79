"""What libraries print and warn of is kept from the screen, whichever way they write."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import warnings

import pytest

from v1lit.training.captured_output import CapturedOutput

NOISY = """
import ctypes, logging, os, sys, warnings
early = logging.StreamHandler(); logging.getLogger("library").addHandler(early)  # keeps this stderr
from v1lit.training.captured_output import CapturedOutput
captured = CapturedOutput()
print("before")
with captured.capture():
    print("from Python")
    print("to stderr", file=sys.stderr)
    os.write(1, b"from C\\n")
    os.system("echo from a process")
    logging.getLogger("library").warning("from a log")
    warnings.warn("from a warning")
print("after")
print(sorted(captured.printed.split("\\n")), dict(captured.warnings))
"""


def test_nothing_reaches_the_screen_and_nothing_is_lost() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(NOISY)], capture_output=True, text=True)
    assert done.stderr == ""
    before, after, kept = done.stdout.splitlines()
    assert (before, after) == ("before", "after")
    for words in ("from Python", "to stderr", "from C", "from a process", "from a log"):
        assert f"'{words}'" in kept
    assert "{'library: from a log': 1, 'UserWarning: from a warning': 1}" in kept


def test_equal_warnings_are_one_with_a_count_and_remarks_are_none() -> None:
    captured = CapturedOutput()
    for _ in range(2):
        with captured.capture():
            warnings.warn("old name", FutureWarning, stacklevel=1)
            logging.getLogger("library").info("a remark")
            logging.getLogger("library").error("a problem")
    assert captured.warnings == {"FutureWarning: old name": 2, "library: a problem": 2}


def test_the_screen_is_given_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    captured, make = CapturedOutput(), logging.getLogRecordFactory()

    def fails() -> None:
        with captured.capture():
            os.write(2, b"kept\n")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    os.write(2, b"shown\n")
    assert capfd.readouterr().err == "shown\n"
    assert captured.printed == "kept\n"
    assert logging.getLogRecordFactory() is make
