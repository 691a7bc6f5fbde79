"""What a trial on this machine gets of its cores and GPUs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.sweeps import runs, until

from v1lit.processes import available_cores
from v1lit.sweep.executor import Job
from v1lit.sweep.folder import SweepFolder
from v1lit.sweep.local import Local, Process, jobs_by_default, visible_gpus

SHOW = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ['OMP_NUM_THREADS'])"


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    found = SweepFolder(tmp_path / "it")
    with found.driven():
        return found


def run(executor: Local, folder: SweepFolder, name: str, script: str) -> Process:
    lock = folder.take(name)
    assert lock is not None
    try:
        return executor.start(Job(name, (sys.executable, "-c", script), {}, folder.output(name), lock))
    finally:
        os.close(lock)


@pytest.mark.parametrize(
    ("gpus", "each", "jobs", "seen"),
    [
        ([], 1.0, 2, ["None", "None"]),
        (["4", "7"], 1.0, 2, ["4", "7"]),
        (["4", "7"], 0.5, 4, ["4", "4", "7", "7"]),
        (["4", "7", "8", "9"], 2.0, 2, ["4,7", "8,9"]),
        (["MIG-a"], 1.0, 2, ["MIG-a", "MIG-a"]),
    ],
)
def test_trials_share_the_gpus_as_asked(
    folder: SweepFolder, monkeypatch: Any, gpus: list[str], each: float, jobs: int, seen: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    executor = Local(jobs, gpus, each, threads=3)
    names = [f"t{number}" for number in range(jobs)]
    running = [run(executor, folder, name, SHOW) for name in names]
    assert not executor.has_room()
    until(lambda: [one.poll() for one in running] == [0] * jobs, "all trials end")
    assert [folder.output(name).read_text().split() for name in names] == [[gpu, "3"] for gpu in seen]
    assert executor.has_room()


def test_there_are_as_many_trials_as_the_gpus_are_enough_for() -> None:
    assert jobs_by_default([], 1) == available_cores()
    assert [jobs_by_default(list("0123"), each) for each in (0.25, 0.5, 1, 2, 8)] == [16, 8, 4, 2, 1]


def test_gpus_are_those_that_this_process_may_use(monkeypatch: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, MIG-a")
    assert visible_gpus() == ["3", "MIG-a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_what_a_trial_leaves_behind_is_ended_with_it(folder: SweepFolder) -> None:
    """A reader of data that hangs would hold its GPU, and the trial's lock."""
    script = (
        "import os, time\nchild = os.fork()\n"
        "if not child:\n    time.sleep(600)\nprint(child, flush=True)\nos._exit(0)"
    )
    executor = Local(1)
    one = run(executor, folder, "a", script)
    until(lambda: one.poll() == 0, "the trial ends")
    child = int(folder.output("a").read_text())
    until(lambda: not runs(child), "what it has started ends")
    lock = folder.take("a")
    assert lock is not None
    os.close(lock)


def test_the_exit_code_of_a_killed_trial_is_that_of_the_shell(folder: SweepFolder) -> None:
    executor = Local(1)
    one = run(executor, folder, "a", "import time; time.sleep(600)")
    one.kill()
    until(lambda: one.poll() is not None, "it ends")
    assert one.poll() == 128 + 9
    executor.close()
