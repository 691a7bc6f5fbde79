"""Pages of results say what their sweeps' files say: no figure in a table is typed."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs/results").glob("*.md"))


@pytest.fixture(scope="module")
def results() -> Iterator[ModuleType]:
    """`tools/docs/results.py`."""
    sys.path.insert(0, str(ROOT / "tools/docs"))
    yield import_module("results")
    sys.path.remove(str(ROOT / "tools/docs"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tables_of_a_page_are_made_of_its_files(page: Path, results: ModuleType) -> None:
    assert page.read_text(encoding="utf-8").count("<!-- table: ") >= 4
    assert results.main([str(page), "--check"]) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_figure_that_is_not_that_of_the_files_is_found_and_mended(
    page: Path, results: ModuleType, tmp_path: Path
) -> None:
    copy = tmp_path / page.name
    shutil.copytree(page.with_suffix(""), tmp_path / page.stem)
    right = page.read_text(encoding="utf-8")
    wrong = re.sub(r"(\| `point_and_copy` \| )\d", r"\g<1>9", right, count=1)
    copy.write_text(wrong, encoding="utf-8")
    assert wrong != right
    assert results.main([str(copy), "--check"]) == 1
    assert copy.read_text(encoding="utf-8") == wrong
    assert results.main([str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") == right


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_all_trials_of_the_sweep_are_done_and_of_one_revision(page: Path) -> None:
    import pandas as pd

    tables = page.with_suffix("") / "text_only"
    trials, versions = pd.read_csv(tables / "trials.csv"), pd.read_csv(tables / "versions.csv")
    assert set(trials.state) == {"done"}
    assert set(versions.trial) == set(trials.trial)
    assert versions.git.nunique() == 1
    revision = versions.git[0]
    assert revision[:7] in page.read_text(encoding="utf-8")
