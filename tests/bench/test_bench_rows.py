"""Rows of benchmarks survive the file between the processes, and nothing else gets through."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import Row, read_rows, write_rows

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    value=st.none() | finite,
    share=st.none() | finite,
    title=st.text(max_size=20),
    met=st.none() | st.booleans(),
)
def test_rows_read_are_the_rows_written(
    value: float | None,
    share: float | None,
    title: str,
    met: bool | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rows = [Row(title, value, "s", "make bench", share=share, goal=">= 3", met=met), Row("b", None, "", "c")]
    file = tmp_path_factory.mktemp("rows") / "rows.json"
    write_rows(file, rows)
    assert read_rows(file) == rows
    assert [one.name for one in file.parent.iterdir()] == ["rows.json"]


def test_a_value_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_rows(tmp_path / "rows.json", [Row("a", math.nan, "s", "c")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{}", "[1]", "not json", '[{"title": "a"}]', '[{"titel": "a"}]'])
def test_other_files_are_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(ValueError, match=r"^rows\.json holds no benchmark rows: "):
        read_rows(tmp_path / "rows.json")
