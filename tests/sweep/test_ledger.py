"""The ledger is read as it was written, whatever a crash has left in it; the table says what it says."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

from v1lit.console import Console
from v1lit.sweep.folder import SweepFolder
from v1lit.sweep.ledger import Ledger, Past, pasts
from v1lit.sweep.progress import Progress, read_progress
from v1lit.sweep.table import status, sweep_table

TRIALS = [{"name": name, "settings": {}, "seed": 0, "changes": {"trainer.max_steps": 40}} for name in "abcd"]


def described(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path)
    (tmp_path / "sweep.json").write_text(
        json.dumps({"name": "it", "metrics": ["val/loss"], "trials": TRIALS})
    )
    (tmp_path / "output").mkdir()
    return folder


def lines(table: object) -> list[list[str]]:
    """Words of the rows of a table."""
    console = Console(file=StringIO(), width=120)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [re.split(r"\s*[│┃]\s*", line)[1:-1] for line in text.splitlines() if line.startswith(("│", "┃"))]


def test_a_half_written_line_costs_no_other(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append("a", "started", 1)
    with ledger.path.open("a") as file:
        file.write('{"time": "2026", "trial": "b", "sta')
    ledger.append("a", "done", 1, seconds=2.5)
    assert [(event["trial"], event["state"]) for event in ledger.events()] == [
        ("a", "started"),
        ("a", "done"),
    ]
    past = pasts(ledger.events())["a"]
    assert (past.state, past.starts, past.failures, past.seconds) == ("done", 1, 0, 2.5)


def test_failures_are_counted_from_where_a_trial_was_begun_anew(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for attempt in (1, 2):
        ledger.append("a", "started", attempt)
        ledger.append("a", "failed", attempt)
    ledger.append("a", "started", 3, anew=True)
    ledger.append("a", "failed", 3, final=True)
    past = pasts(ledger.events())["a"]
    assert (past.starts, past.failures, past.final) == (3, 1, True)


def test_progress_comes_from_printed_lines_measurements_and_results(tmp_path: Path) -> None:
    folder = described(tmp_path)
    assert read_progress(folder, "a", "val/loss") == Progress()
    folder.output("a").write_text("training\nstep 1 loss 7.5\nstep 12 loss 3.1 val 20%\n")
    assert read_progress(folder, "a", "val/loss") == Progress(12)
    csv = tmp_path / "trials/a/csv/metrics.csv"
    csv.parent.mkdir(parents=True)
    csv.write_text("epoch,step,train/loss,val/loss\n0,9,2.0,\n0,19,,1.5\n")
    assert read_progress(folder, "a", "val/loss") == Progress(20, 1.5)
    (tmp_path / "trials/a/metrics.json").write_text('{"train/steps": 40.0, "val/loss": 1.25}')
    assert read_progress(folder, "a", "val/loss") == Progress(40, 1.25)


def test_of_long_measurements_only_the_end_is_read(tmp_path: Path) -> None:
    folder = described(tmp_path)
    csv = tmp_path / "trials/a/csv/metrics.csv"
    csv.parent.mkdir(parents=True)
    csv.write_text("epoch,step,val/loss\n" + "".join(f"0,{step},{step}.5\n" for step in range(50_000)))
    assert read_progress(folder, "a", "val/loss") == Progress(50_000, 49_999.5)


def test_the_table_shows_state_step_metric_and_time_left(tmp_path: Path) -> None:
    folder = described(tmp_path)
    folder.output("b").write_text("step 10 loss 3.1\n")
    (tmp_path / "trials/a").mkdir(parents=True)
    (tmp_path / "trials/a/metrics.json").write_text('{"train/steps": 40.0, "val/loss": 1.25}')
    past = {
        "a": Past("done", 2, 1, seconds=100.0),
        "b": Past("started", 2, 1, seconds=20.0),
        "c": Past("failed", 3, 3, last={"given_up": True}),
    }
    table = sweep_table(folder, past, {"b": 30.0}, 4)
    assert str(table.title) == "it: 1 done, 1 runs, 1 given up, 1 waits; about 0:04:30 left"
    assert lines(table)[1:] == [
        ["b", "runs, start 2", "10/40", "", "0:00:50", "0:01:30"],
        ["a", "done", "40/40", "1.25", "0:01:40", ""],
        ["c", "given up, failed 3x", "", "", "0:00:00", ""],
        ["d", "waits", "", "", "", ""],
    ]
    assert lines(sweep_table(folder, past, {"b": 30.0}, 1))[-1][0] == "and 3 more"


def test_the_status_of_a_sweep_without_a_driver_says_what_was_left_behind(tmp_path: Path) -> None:
    folder = described(tmp_path)
    Ledger(tmp_path).append("a", "started", 1)
    Ledger(tmp_path).append("b", "failed", 1, code=1, why="error: the disk melted")
    table, failed = status(folder, 0.0)
    assert [row[:2] for row in lines(table)[1:3]] == [["a", "left behind"], ["b", "failed 1x"]]
    assert failed == [f"b: exit code 1: error: the disk melted ({tmp_path / 'output' / 'b.txt'})"]
