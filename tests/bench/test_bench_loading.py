"""No process holds more than its part of a model while weights are loaded."""

from __future__ import annotations

from pathlib import Path

import loading
import pytest
from rows import read_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc"),
]


def test_a_rank_needs_little_more_than_its_share_of_memory(tmp_path: Path) -> None:
    loading.main(["--quick", "--ranks", "2", "--json", str(tmp_path / "rows.json")])
    rows = read_rows(tmp_path / "rows.json")
    whole, _, part, _ = rows
    assert [row.met for row in rows if row.goal] == [True]
    assert part.value is not None
    assert whole.value is not None
    assert part.value < whole.value / 2
