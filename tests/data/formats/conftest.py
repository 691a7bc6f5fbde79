from __future__ import annotations

from pathlib import Path

import pytest
from helpers.v1g_cases import numbered, write


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small.parquet", numbered(4))
