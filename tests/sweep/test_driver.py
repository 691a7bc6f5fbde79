"""A sweep comes to its end whatever happens to its trials and to its driver."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from helpers.sweeps import ended, events, runs, start, starts, states, until

from v1lit.sweep.ledger import Ledger

pytestmark = pytest.mark.usefixtures("nothing_is_left")
NAMES = [f"t{number}" for number in range(12)]


def test_all_trials_run_and_the_ledger_says_so(tmp_path: Path) -> None:
    assert ended(start(tmp_path, {"a": "ends", "b": "ends", "c": "ends"})) == (0, "")
    assert {name: states(tmp_path, name) for name in "abc"} == {name: ["started", "done"] for name in "abc"}
    assert all({"time", "trial", "state", "attempt"} <= event.keys() for event in events(tmp_path))


def test_no_more_trials_run_at_a_time_than_there_are_jobs(tmp_path: Path) -> None:
    driver = start(tmp_path, dict.fromkeys(NAMES[:4], "waits"), jobs=2)
    until(lambda: len(starts(tmp_path, NAMES)) == 2, "two trials start")
    (tmp_path / "go").touch()
    assert ended(driver)[0] == 0
    running = most = 0
    for event in events(tmp_path):
        running += 1 if event["state"] == "started" else -1
        most = max(most, running)
    assert most == 2


def test_a_driver_killed_amid_twelve_trials_resumes_without_repeating_what_is_done(tmp_path: Path) -> None:
    trials = {name: "ends" if number < 4 else "waits" for number, name in enumerate(NAMES)}
    driver = start(tmp_path, trials)
    until(lambda: len(starts(tmp_path, NAMES)) == 6, "four trials end and two start")
    until(lambda: sum(event["state"] == "started" for event in events(tmp_path)) == 6, "they are noted")
    driver.send_signal(signal.SIGKILL)
    assert ended(driver)[0] == -signal.SIGKILL
    until(lambda: not any(map(runs, starts(tmp_path, NAMES))), "the trials end with their driver")

    (tmp_path / "go").touch()
    assert ended(start(tmp_path, trials))[0] == 0
    again = ["started", "stopped", "started", "done"]
    assert [states(tmp_path, name) for name in NAMES[4:6]] == [again, again]
    assert all(states(tmp_path, name) == ["started", "done"] for name in NAMES[:4] + NAMES[6:])
    assert len(starts(tmp_path, NAMES)) == 14


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_told_to_stop_stops_its_trials(tmp_path: Path, number: signal.Signals) -> None:
    driver = start(tmp_path, dict.fromkeys("abc", "waits"))
    until(lambda: len(starts(tmp_path, "abc")) == 2, "two trials start")
    until(lambda: len(events(tmp_path)) == 2, "they are noted")
    driver.send_signal(number)
    assert ended(driver)[0] == 128 + number
    assert not any(map(runs, starts(tmp_path, "abc")))
    assert [states(tmp_path, name) for name in "abc"] == [["started", "stopped"]] * 2 + [[]]


def test_a_trial_that_is_killed_is_started_again(tmp_path: Path) -> None:
    assert ended(start(tmp_path, {"a": "killed once", "b": "ends"}))[0] == 0
    assert states(tmp_path, "a") == ["started", "failed", "started", "done"]
    failed = events(tmp_path, "a")[1]
    assert (failed["code"], failed["final"]) == (128 + signal.SIGKILL, False)
    assert [event["attempt"] for event in events(tmp_path, "a")] == [1, 1, 2, 2]


def test_a_trial_that_always_fails_is_given_up_and_the_others_run(tmp_path: Path) -> None:
    trials = {"a": "fails", "b": "ends", "c": "ends"}
    assert ended(start(tmp_path, trials, attempts=2))[0] == 3
    assert states(tmp_path, "a") == ["started", "failed"] * 2
    assert events(tmp_path, "a")[-1]["why"] == "error: the disk melted"
    assert states(tmp_path, "b") == states(tmp_path, "c") == ["started", "done"]
    # The same command tries it no more, and says so again; asked to, it counts anew.
    assert ended(start(tmp_path, trials, attempts=2))[0] == 3
    assert len(events(tmp_path, "a")) == 4
    assert ended(start(tmp_path, {**trials, "a": "ends"}, attempts=2, retry=True))[0] == 0
    assert states(tmp_path, "a")[4:] == ["started", "done"]


def test_a_mistake_is_not_tried_again(tmp_path: Path) -> None:
    assert ended(start(tmp_path, {"a": "mistake", "b": "ends"}))[0] == 3
    assert states(tmp_path, "a") == ["started", "failed"]


def test_a_trial_that_ended_as_its_driver_was_killed_is_not_repeated(tmp_path: Path) -> None:
    place = tmp_path / "it/trials/a"
    place.mkdir(parents=True)
    (place / "metrics.json").write_text("{}")  # the last thing that a run writes
    Ledger(tmp_path / "it").append("a", "started", 1)
    assert ended(start(tmp_path, {"a": "fails"}))[0] == 0
    assert states(tmp_path, "a") == ["started", "done"]
    assert starts(tmp_path, "a") == []


def test_a_trial_whose_folder_was_removed_runs_again(tmp_path: Path) -> None:
    ended(start(tmp_path, {"a": "ends", "b": "ends"}))
    shutil.rmtree(tmp_path / "it/trials/a")
    assert ended(start(tmp_path, {"a": "ends", "b": "ends"}))[0] == 0
    assert states(tmp_path, "a") == ["started", "done", "stopped", "started", "done"]
    assert states(tmp_path, "b") == ["started", "done"]


def test_trials_end_with_a_driver_that_fails_itself(tmp_path: Path) -> None:
    driver = start(tmp_path, {"a": "waits", "b": "ends"})
    until(lambda: states(tmp_path, "b") == ["started", "done"] and starts(tmp_path, "a"), "a waits")
    (tmp_path / "it/ledger.jsonl").unlink()
    (tmp_path / "it/ledger.jsonl").mkdir()  # now nothing can be noted
    (tmp_path / "go").touch()
    code, said = ended(driver)
    assert code == 1
    assert "IsADirectoryError" in said
    assert not any(map(runs, starts(tmp_path, "ab")))


def test_failures_are_counted_over_starts_of_the_driver(tmp_path: Path) -> None:
    trials = {"a": "fails", "b": "waits"}
    driver = start(tmp_path, trials, jobs=1, attempts=3)
    until(lambda: states(tmp_path, "a") == ["started", "failed"] and states(tmp_path, "b"), "b runs")
    driver.send_signal(signal.SIGKILL)
    ended(driver)
    (tmp_path / "go").touch()
    assert ended(start(tmp_path, trials, jobs=1, attempts=3))[0] == 3
    assert states(tmp_path, "a") == ["started", "failed"] * 3


def test_a_second_driver_on_one_folder_is_refused(tmp_path: Path) -> None:
    driver = start(tmp_path, {"a": "waits"})
    until(lambda: starts(tmp_path, "a"), "the trial starts")
    code, said = ended(start(tmp_path, {"a": "waits"}))
    assert code == 1
    assert f"it is driven by process {driver.pid} on " in said
    (tmp_path / "go").touch()
    assert ended(driver)[0] == 0
    assert states(tmp_path, "a") == ["started", "done"]


def test_a_trial_whose_old_process_still_runs_is_waited_for(tmp_path: Path) -> None:
    """One that ends with its driver only later, as while it saves, is not started beside itself."""
    driver = start(tmp_path, {"a": "waits", "b": "ends"})
    until(lambda: states(tmp_path, "b") == ["started", "done"] and starts(tmp_path, "a"), "a waits")
    (old,) = starts(tmp_path, "a")
    os.kill(old, signal.SIGSTOP)  # now it cannot end, once that has come through: SIGTERM would come first
    until(lambda: Path(f"/proc/{old}/stat").read_text().rpartition(")")[2].split()[0] == "T", "a is stopped")
    driver.send_signal(signal.SIGKILL)
    ended(driver)
    (tmp_path / "go").touch()
    again = start(tmp_path, {"a": "waits", "b": "ends", "c": "ends"})
    until(lambda: states(tmp_path, "c") == ["started", "done"], "another trial is run meanwhile")
    assert states(tmp_path, "a") == ["started", "stopped"]
    os.kill(old, signal.SIGCONT)
    assert ended(again)[0] == 0
    assert states(tmp_path, "a") == ["started", "stopped", "started", "done"]
