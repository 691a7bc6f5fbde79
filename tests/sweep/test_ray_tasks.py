"""Trials as tasks of a real Ray cluster of two nodes, which both are this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.launched_runs import environment
from helpers.ray_cluster import RayCluster
from helpers.sweeps import TINY, ended, events, runs, start, starts, states, until

pytest.importorskip("ray", reason="ray is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("nothing_is_left"),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc"),
    pytest.mark.timeout(200),
]
NAMES = [f"t{number}" for number in range(6)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    found = RayCluster()
    try:
        found.add_worker(cpus=2)
        yield found
    finally:
        found.close()


def begin(
    cluster: RayCluster, folder: Path, trials: dict[str, str], jobs: int = 6, options: str = "", **more: Any
) -> subprocess.Popen[str]:
    executor = f"joined({cluster.address!r}, {options})"
    return start(folder, trials, jobs=jobs, executor=executor, variables=environment(), **more)


def variables(pid: int) -> dict[str, str]:
    """The environment of a process."""
    found = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(line.split("=", 1) for line in found if "=" in line)


def raylet_of(pid: int) -> int:
    """Where a trial runs."""
    return int(variables(pid)["RAY_RAYLET_PID"])


def worker_of(lock: Path) -> int:
    """The worker of Ray that has started the trial which holds a lock."""
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if path.readlink() == lock:
                stat = path.parent.parent / "stat"
                return int(stat.read_text().rpartition(")")[2].split()[1])
    raise AssertionError("no process holds the lock")


def test_trials_run_on_both_nodes_and_all_come_to_their_ends(cluster: RayCluster, tmp_path: Path) -> None:
    driver = begin(cluster, tmp_path, dict.fromkeys(NAMES, "waits"))
    until(lambda: len(starts(tmp_path, NAMES)) == 4, "as many start as there are CPUs")
    assert {raylet_of(pid) for pid in starts(tmp_path, NAMES)} == {node.raylet for node in cluster.nodes}
    (tmp_path / "go").touch()
    assert ended(driver) == (0, "")
    assert {name: states(tmp_path, name) for name in NAMES} == {name: ["started", "done"] for name in NAMES}


def test_failures_are_counted_and_one_that_always_fails_is_given_up(
    cluster: RayCluster, tmp_path: Path
) -> None:
    trials = {"a": "ends", "b": "fails once", "c": "mistake", "d": "killed once", "e": "fails"}
    assert ended(begin(cluster, tmp_path, trials, attempts=2)) == (3, "")
    again = ["started", "failed", "started", "done"]
    assert {name: states(tmp_path, name) for name in trials} == {
        "a": ["started", "done"], "b": again, "c": ["started", "failed"], "d": again,
        "e": ["started", "failed"] * 2,
    }  # fmt: skip
    codes = {event["trial"]: event["code"] for event in events(tmp_path) if event["state"] == "failed"}
    assert codes == {"b": 1, "c": 2, "d": 137, "e": 1}
    assert events(tmp_path, "e")[-1]["why"] == "error: the disk melted"


def test_a_trial_whose_node_is_lost_is_started_on_another_one(cluster: RayCluster, tmp_path: Path) -> None:
    more = cluster.add_worker(cpus=2)
    try:
        driver = begin(cluster, tmp_path, dict.fromkeys(NAMES, "waits"))
        until(lambda: len(starts(tmp_path, NAMES)) == 6, "all start")
        until(lambda: len(events(tmp_path)) == 6, "they are noted")
        there = [name for name in NAMES if raylet_of(*starts(tmp_path, [name])) == more.raylet]
        assert len(there) == 2
    finally:
        more.kill()
    until(lambda: all(states(tmp_path, name)[1:2] == ["failed"] for name in there), "they are lost")
    (tmp_path / "go").touch()
    assert ended(driver)[0] == 0
    for name in NAMES:
        again = ["failed", "started"] if name in there else []
        assert states(tmp_path, name) == ["started", *again, "done"]
    assert events(tmp_path, there[0])[1]["code"] == 137
    assert events(tmp_path, there[0])[1]["why"].startswith("error: lost by Ray: ")


def test_a_trial_whose_worker_is_killed_is_started_again(cluster: RayCluster, tmp_path: Path) -> None:
    driver = begin(cluster, tmp_path, {"a": "waits"})
    until(lambda: starts(tmp_path, "a") and events(tmp_path), "the trial starts")
    (pid,) = starts(tmp_path, "a")
    os.kill(worker_of(tmp_path / "it/locks/a.lock"), signal.SIGKILL)
    until(lambda: len(starts(tmp_path, "a")) == 2, "it starts again")
    assert not runs(pid)
    (tmp_path / "go").touch()
    assert ended(driver)[0] == 0
    assert states(tmp_path, "a") == ["started", "failed", "started", "done"]


def test_a_killed_driver_takes_its_trials_along_and_the_next_one_repeats_nothing(
    cluster: RayCluster, tmp_path: Path
) -> None:
    trials = {name: "ends" if number < 2 else "waits" for number, name in enumerate(NAMES)}
    driver = begin(cluster, tmp_path, trials, jobs=4)
    until(lambda: sum(event["state"] == "done" for event in events(tmp_path)) == 2, "two trials end")
    until(lambda: len(starts(tmp_path, NAMES)) == 6, "four others run")
    driver.kill()
    ended(driver)
    again = begin(cluster, tmp_path, trials, jobs=4)
    until(lambda: len(starts(tmp_path, NAMES)) == 10, "they start again")
    assert not any(map(runs, starts(tmp_path, NAMES)[:2]))
    assert sum(map(runs, starts(tmp_path, NAMES))) == 4
    (tmp_path / "go").touch()
    assert ended(again)[0] == 0
    assert [states(tmp_path, name) for name in NAMES[:2]] == [["started", "done"]] * 2
    assert all(states(tmp_path, name) == ["started", "stopped", "started", "done"] for name in NAMES[2:])
    assert len(starts(tmp_path, NAMES)) == 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_told_to_stop_stops_what_runs_and_what_waits(
    cluster: RayCluster, tmp_path: Path, number: signal.Signals
) -> None:
    driver = begin(cluster, tmp_path, dict.fromkeys(NAMES, "saves"))
    until(lambda: len(starts(tmp_path, NAMES)) == 4 and len(events(tmp_path)) == 6, "four run, two wait")
    until(lambda: len(list(tmp_path.glob("it/trials/*/ready"))) == 4, "they can be told")
    driver.send_signal(number)
    assert ended(driver) == (128 + number, "")
    assert not any(map(runs, starts(tmp_path, NAMES)))
    assert len(list(tmp_path.glob("it/trials/*/saved"))) == 4
    assert all(states(tmp_path, name) == ["started", "stopped"] for name in NAMES)
    codes = sorted(event["code"] for event in events(tmp_path) if event["state"] == "stopped")
    assert codes == [143] * 6


def test_a_second_signal_ends_at_once_a_trial_that_does_not_stop(cluster: RayCluster, tmp_path: Path) -> None:
    driver = begin(cluster, tmp_path, {"a": "deaf"})
    until(lambda: starts(tmp_path, "a") and events(tmp_path), "the trial starts")
    driver.send_signal(signal.SIGINT)
    until(lambda: (tmp_path / "it/trials/a/told").exists(), "it is asked to stop")
    assert driver.poll() is None
    driver.send_signal(signal.SIGINT)
    assert ended(driver)[0] == 130
    until(lambda: not runs(*starts(tmp_path, "a")), "it ends")


@pytest.mark.parametrize(("gpus", "seen"), [(0.5, ["0", "0", "1", "1"]), (1, ["0", "1"]), (2, ["0,1"])])
def test_trials_share_the_gpus_of_a_node_as_asked(
    cluster: RayCluster, tmp_path: Path, gpus: float, seen: list[str]
) -> None:
    """Several of one trial by a placement group."""
    trials = dict.fromkeys(NAMES, "waits")
    driver = begin(cluster, tmp_path, trials, options=f"gpus={gpus}, cpus=0.5, threads=3")
    until(lambda: len(starts(tmp_path, NAMES)) == len(seen), "as many start as the GPUs are enough for")
    found = [variables(pid) for pid in starts(tmp_path, NAMES)]
    assert sorted(one["CUDA_VISIBLE_DEVICES"] for one in found) == seen
    assert {one["OMP_NUM_THREADS"] for one in found} == {"3"}
    (tmp_path / "go").touch()
    assert ended(driver)[0] == 0


@pytest.mark.parametrize(
    ("options", "asked"), [("gpus=3", "1 CPU and 3 GPUs"), ("cpus=8", "8 CPUs and 0 GPUs")]
)
def test_what_no_node_can_hold_is_told_with_what_the_nodes_have(
    cluster: RayCluster, tmp_path: Path, options: str, asked: str
) -> None:
    code, said = ended(begin(cluster, tmp_path, {"a": "ends"}, options=options))
    assert code == 1
    assert f"a trial asks for {asked}, and no node of the Ray cluster has that; its nodes have: " in said
    assert "2 CPUs and 2 GPUs" in said
    assert "2 CPUs and 0 GPUs" in said
    assert starts(tmp_path, "a") == []


def test_a_node_without_what_trials_need_ends_the_sweep(cluster: RayCluster, tmp_path: Path) -> None:
    """No attempt is counted: the same command resumes once that is mended."""
    code, said = ended(begin(cluster, tmp_path, {"a": "ends"}, python="/nowhere/python"))
    assert code == 1
    assert "a node of the Ray cluster has no /nowhere/python, with which the sweep was started" in said
    assert states(tmp_path, "a") == ["started"]


def test_a_real_run_whose_worker_is_killed_resumes_from_its_checkpoint(
    cluster: RayCluster, tmp_path: Path
) -> None:
    content = {**TINY, "axes": {}, "budget": {"steps": 30}}
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(content))
    words = ["sweep", "real.yaml", "--executor=ray", f"--address={cluster.address}", "--folder=it"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "v1lit.cli.main", *words],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    place = tmp_path / "it/trials/seed0"
    until((place / "checkpoints/last.ckpt").exists, "the trial has saved")
    os.kill(worker_of(tmp_path / "it/locks/seed0.lock"), signal.SIGKILL)
    code, said = ended(driver)
    assert code == 0, said
    assert states(tmp_path, "seed0") == ["started", "failed", "started", "done"]
    first = (place / "csv-2/metrics.csv").read_text().splitlines()[1]
    assert int(first.split(",")[1]) > 0, "it has begun anew"
    assert json.loads((place / "metrics.json").read_text())["train/steps"] == 30
