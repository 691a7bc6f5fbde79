"""What is read from the folder of a sweep: states, costs, curves of resumed runs, readings between points."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.sweep_folders import note, rates, write_csv, write_sweep, write_trial

from v1lit.sweep.curves import FLOPS, REAL_TOKENS, SECONDS, Point, reached, read_at, read_curve
from v1lit.sweep.folder import SweepFolderError
from v1lit.sweep.results import numbered, read_sweep_results
from v1lit.training import logged
from v1lit.training.logged import RATES

TRIAL = {"name": "a", "settings": {"way": "crop"}, "seed": 3, "changes": {"x": 1}}


def test_rates_become_tokens_operations_and_seconds_since_the_beginning(tmp_path: Path) -> None:
    rows = [rates(10, 0.5, 200, 1e9), {"step": 9, "val/loss": 2.0}, rates(20, 1.0, 300, 3e9)]
    write_csv(tmp_path / "csv", [*rows, {"step": 24, "val/loss": 1.0}])
    curve = read_curve([tmp_path / "csv"])
    assert [(p.steps, p.seconds, p.tokens, p.flops) for p in curve] == [
        (10, 5.0, 1000.0, 1e10),
        (20, 15.0, 4000.0, 4e10),
        (25, 20.0, 5500.0, 5.5e10),  # steps behind the last log have its rates
    ]
    assert [p.values.get("val/loss") for p in curve] == [2.0, None, 1.0]


def test_a_point_between_two_logs_has_its_part_of_the_later_one(tmp_path: Path) -> None:
    write_csv(tmp_path, [rates(10, flops=1.0), {"step": 14, "val/loss": 2.0}, rates(20, flops=3.0)])
    assert [point.flops for point in read_curve([tmp_path])] == [10.0, 25.0, 40.0]


def test_what_a_resumed_run_did_again_counts_once(tmp_path: Path) -> None:
    write_csv(tmp_path / "csv", [rates(10, flops=1.0), rates(20, flops=1.0), {"step": 24, "val/loss": 9.0}])
    write_csv(tmp_path / "csv-2", [rates(20, flops=3.0), {"step": 19, "val/loss": 2.0}, rates(30, flops=3.0)])
    curve = read_curve([tmp_path / "csv", tmp_path / "csv-2"])
    assert [(p.steps, p.flops) for p in curve] == [(10, 10.0), (20, 40.0), (30, 70.0)]
    assert curve[1].values["val/loss"] == 2.0


def test_a_run_without_operations_has_curves_without_them(tmp_path: Path) -> None:
    write_csv(tmp_path, [{"step": 9, "train/seconds_per_step": 2.0}, {"step": 9, "val/loss": 1.0}])
    (point,) = read_curve([tmp_path])
    assert point.seconds == 20.0
    assert [math.isnan(number) for number in (point.flops, point.tokens)] == [True, True]


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    write_csv(tmp_path, [rates(10)])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("19,0.5,2e")
    assert [point.steps for point in read_curve([tmp_path])] == [10]


def test_a_curve_is_read_on_the_line_between_points_and_nowhere_else() -> None:
    points = [Point(10, flops=1e9, values={"m": 0.2}), Point(20, flops=3e9, values={"m": 0.6}), Point(30)]
    assert read_at(points, "m", "flops", 1.5e9) == pytest.approx(0.3)
    assert read_at(points, "m", "flops", 3e9) == pytest.approx(0.6)
    assert read_at(points, "m", "flops", 1e9) == pytest.approx(0.2)
    assert math.isnan(read_at(points, "m", "flops", 0.9e9))
    assert math.isnan(read_at(points, "m", "flops", 3.1e9))
    assert read_at(points[:1], "m", "flops", 1e9) == 0.2
    assert reached(points, "m", "flops") == 3e9
    assert math.isnan(reached(points, "other", "flops"))


def test_curves_are_read_from_what_a_run_logs() -> None:
    assert {REAL_TOKENS, SECONDS, FLOPS} <= {*RATES, logged.FLOPS}


def test_states_attempts_and_seconds_are_the_ledgers(tmp_path: Path) -> None:
    names = ["fine", "broken", "running", "waiting"]
    write_sweep(tmp_path, [{**TRIAL, "name": name} for name in names])
    note(tmp_path, "fine", "started")
    note(tmp_path, "fine", "stopped", why="the driver was killed")
    note(tmp_path, "fine", "started", 2)
    note(tmp_path, "fine", "done", 2, seconds=7.5)
    for attempt in (1, 2):
        note(tmp_path, "broken", "started", attempt)
        note(tmp_path, "broken", "failed", attempt, seconds=2.0, why="error: the disk melted")
    note(tmp_path, "running", "started")
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"trial": "waiting", "sta')
    found = {trial.name: trial for trial in read_sweep_results(tmp_path).trials}
    assert {name: trial.state for name, trial in found.items()} == {
        "fine": "done",
        "broken": "failed",
        "running": "running or broken off",
        "waiting": "not started",
    }
    assert [(found[name].attempts, found[name].seconds, found[name].unended) for name in names] == [
        (2, 7.5, 1),
        (2, 4.0, 0),
        (1, 0.0, 1),
        (0, 0.0, 0),
    ]
    assert found["broken"].why == "error: the disk melted"


def test_the_value_at_the_end_is_that_of_the_results_else_the_last_logged(tmp_path: Path) -> None:
    write_sweep(tmp_path, [TRIAL])
    rows = [{"step": 9, "val/loss": 3.0, "val/forced": 0.1}, {"step": 19, "val/loss": 2.0, "val/forced": 0.4}]
    write_trial(tmp_path, "a", 3, {"val/loss": 1.5, "val/nothing": None}, rows)
    (trial,) = read_sweep_results(tmp_path).trials
    assert (trial.value("val/loss"), trial.value("val/forced")) == (1.5, 0.4)
    assert math.isnan(trial.value("val/nothing"))
    assert math.isnan(trial.value("val/unknown"))


def test_recipe_and_versions_are_those_of_the_last_start(tmp_path: Path) -> None:
    write_sweep(tmp_path, [TRIAL])
    write_trial(tmp_path, "a", 3, {})
    for number, torch in ((2, "2.12"), (10, "2.13"), (9, "2.11")):
        (tmp_path / f"trials/a/recipe-{number}.yaml").write_text(
            f"# torch: {torch}\nseed_everything: 3\n# no: head\n"
        )
    (tmp_path / "trials/a/recipe-old.yaml").write_text("# torch: 1\n")
    (trial,) = read_sweep_results(tmp_path).trials
    assert trial.versions == {"torch": "2.13"}
    assert [path.name for path in numbered(tmp_path / "trials/a", "recipe.yaml")] == [
        "recipe.yaml",
        "recipe-2.yaml",
        "recipe-9.yaml",
        "recipe-10.yaml",
    ]


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SweepFolderError, match="no folder of a sweep: there is no such folder"):
        read_sweep_results(tmp_path / "nowhere")
    with pytest.raises(SweepFolderError, match=r"no folder of a sweep: it has no sweep\.json"):
        read_sweep_results(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"trials": [{"name": "a"}]},
        {"axes": None},
        {"trials": [{**TRIAL, "name": "../../etc"}]},
        {"metrics": 3},
    ],
)
def test_a_description_that_cannot_be_used_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_sweep(tmp_path, [TRIAL])
    content = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps({**content, **changed}))
    with pytest.raises(SweepFolderError, match="does not describe a sweep"):
        read_sweep_results(tmp_path)
