"""What tests of sweeps share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.sweeps import runs, starts


@pytest.fixture
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """End what a test that failed has left running."""
    yield
    for pid in starts(tmp_path, [path.parent.name for path in tmp_path.glob("it/trials/*/starts")]):
        if runs(pid):
            os.kill(pid, signal.SIGKILL)
