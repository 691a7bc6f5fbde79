"""Many reasons in few lines."""

from __future__ import annotations

from pathlib import Path

from v1lit.data.reasons import in_words, listed_in, most_frequent


def test_reasons_that_differ_in_details_are_one_kind() -> None:
    reasons = [
        "the row has no id",
        "<|region_1|> with bounds [1.0, 2.5] reaches out",
        "example 'a\\'b' has 7 tokens",
        "<|region_2|> with bounds [-3, 4e-7] reaches out",
        'example "c" has 12 tokens',
        "<|region_9|> with bounds [] reaches out",
        "something else",
    ]
    found = most_frequent(reasons, most=3)
    assert found == [(reasons[1], 3), (reasons[2], 2), (reasons[0], 1)]
    assert in_words(found[1:]) == f"2 x {reasons[2]}; 1 x the row has no id"
    assert most_frequent([]) == []


def test_reasons_are_read_from_a_list_of_findings(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    assert list(listed_in(path)) == []
    path.write_text('{"id": "a", "reason": "so"}\n{"id": null, "reason": "dass"}\n', encoding="utf-8")
    assert list(listed_in(path)) == ["so", "dass"]
