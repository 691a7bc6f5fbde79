"""Files of rows are cut into spans between rows, and every span gives its own rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.rows import write_rows
from hypothesis import given
from hypothesis import strategies as st

from v1lit.data.importing.rows import BadRow, read_span, spans

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
some_rows = st.lists(st.dictionaries(st.text(max_size=5), values, max_size=4), max_size=12)


def all_rows(path: Path, most: int) -> list[Any]:
    cut = spans(path, most)
    read = [list(read_span(path, span)) for span in cut]
    assert [len(rows) for rows in read] == [span.rows for span in cut]
    return [row for rows in read for row in rows]


@given(some_rows, st.integers(1, 5), st.sampled_from([None, 1]), st.booleans())
def test_json_gives_its_rows_however_it_is_cut_and_laid_out(tmp_path_factory, rows, most, indent, ascii_only):
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    assert all_rows(path, most) == rows


@given(some_rows, st.integers(1, 5), st.booleans())
def test_json_lines_give_their_rows_however_they_are_cut(tmp_path_factory, rows, most, ascii_only):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    assert all_rows(path, most) == rows


def test_spans_hold_at_most_as_many_rows_as_asked_for(tmp_path: Path) -> None:
    for name in ("x.json", "x.jsonl"):
        path = write_rows(tmp_path / name, [{"a": number} for number in range(7)])
        assert [span.rows for span in spans(path, 3)] == [3, 3, 1]


@pytest.mark.parametrize("most", [1, 3, 10])
def test_an_arrow_stream_gives_its_rows_however_it_is_cut(tmp_path: Path, most: int) -> None:
    rows = [{"q": str(number), "boxes": [[number, 1.5]], "image": {"bytes": b"x"}} for number in range(7)]
    assert all_rows(write_rows(tmp_path / "x.arrow", rows), most) == rows


def test_a_damaged_arrow_stream_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.arrow", [{"a": number} for number in range(7)])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"x\.arrow is not a readable Arrow stream"):
        spans(path, 3)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is not a readable Arrow stream"):
        spans(path, 3)


def test_a_line_that_is_no_object_is_a_bad_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n{"a": NaN}\n{"a": "\xff"}\n{"a": 2}\n')
    good, *bad, last = all_rows(path, 2)
    assert (good, last) == ({"a": 1}, {"a": 2})
    reasons = [row.reason for row in bad if isinstance(row, BadRow)]
    for reason, part in zip(reasons, ["not JSON", "not list", "NaN", "UTF-8"], strict=True):
        assert part in reason


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"images": []}', 'holds no list of rows; it begins with \'{"images"'),
        ('[{"a": 1}, {"b": ]', "is no JSON behind byte 11"),
        ('[{"a": 1} {"b": 2}]', "expected a comma at byte 10"),
        ('[{"a": 1}] and more', "something follows its list, at byte 10"),
        ('[{"a": 1}', "expected a comma at byte 9"),
        ("[" * 100_000, "is no JSON behind byte 1"),
    ],
)
def test_a_damaged_json_file_is_refused_with_the_place(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=why.replace("{", r"\{").replace("[", r"\[")):
        spans(path, 10)
