"""Every sweep that comes with v1lit passes its dry run, on a machine that lacks its data and its devices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from v1lit.cli.main import main

SWEEPS = sorted((Path(__file__).resolve().parents[2] / "recipes/sweeps").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_a_shipped_sweep_passes_its_dry_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", str(path), "--dry-run", "--elsewhere"]) == 0
    said = capsys.readouterr().out
    (trials,) = re.findall(rf"^{path.stem}: (\d+) trials", said, re.MULTILINE)
    assert int(trials) >= 4
    assert [*tmp_path.iterdir()] == [], "a dry run leaves nothing"


def test_what_is_said_of_the_sweep_stands_in_its_first_line() -> None:
    for path in SWEEPS:
        about, run = path.read_text().splitlines()[:2]
        assert about.startswith("# ")
        assert run.startswith(f"# Run: v1lit sweep recipes/sweeps/{path.name}"), run
