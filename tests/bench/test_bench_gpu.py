"""What needs a GPU runs on a CPU in tiny sizes, says what failed, and refuses what makes no sense."""

from __future__ import annotations

from pathlib import Path

import gpu
import pytest
import run
import torch
from page import read_results
from rows import Row


@pytest.mark.slow
def test_everything_runs_in_tiny_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HERE", tmp_path)
    (tmp_path / "loss.py").write_text(
        "import json, sys; given = sys.argv\n"
        'assert "--quick" in given and given[given.index("--device") + 1] == "cpu"\n'
        'row = {"title": "kernel", "value": 1.0, "unit": "s", "command": "c"}\n'
        'json.dump([row], open(given[given.index("--json") + 1], "w"))\n'
    )
    assert gpu.main(["--quick", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    groups = read_results(tmp_path / "out" / "benchmarks.json")["gpu"].groups
    assert [row.title for row in groups["The loss"]] == ["kernel"]
    plain, recomputed = groups["The whole step"][:4], groups["The whole step"][4:]
    assert len(recomputed) == 4
    assert plain[0].limit == recomputed[0].limit, "what is recomputed is no work"
    assert (plain[2].goal, recomputed[2].goal) == (">= 50 %", None)
    assert len(groups["Decoding"]) == 2
    rows = [row for group in groups.values() for row in group]
    assert all(row.value is not None and row.met is None for row in rows)
    text = (tmp_path / "out" / "benchmarks.md").read_text()
    assert "missing**" not in text
    assert "matrix products in bfloat16" in text


def test_what_fails_is_listed_with_its_reason() -> None:
    def fails() -> list[Row]:
        raise RuntimeError("CUDA out of memory.\nTried to allocate 3 GiB")

    rows, good = gpu.attempt("Step", fails, quick=False)
    assert not good
    assert rows == [Row("Step", None, "", gpu.COMMAND, note="failed: RuntimeError: CUDA out of memory.")]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--device", "cpu"], "with --quick"),
        (["--quick", "--device", "cpu"], "--out FOLDER"),
        pytest.param(
            [],
            "no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert reason in capsys.readouterr().err
