"""What a command of `v1lit data` says of a mistake, and what it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from v1lit.cli.main import main


def assert_refused(
    arguments: Sequence[str], words: Sequence[str], root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It ends with exit code 2 and at most two lines that hold `words`, and changes nothing in `root`."""
    before = sorted(root.rglob("*"))
    assert main(["data", *arguments]) == 2
    out, err = capfd.readouterr()
    for word in words:
        assert word in err
    assert len(err.strip().splitlines()) <= 2
    assert "Traceback" not in err
    assert out == ""
    assert sorted(root.rglob("*")) == before
