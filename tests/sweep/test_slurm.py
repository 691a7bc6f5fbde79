"""Trials as jobs of SLURM, with stand-ins for its commands that run them on this machine."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_slurm import fake_slurm
from helpers.launched_runs import environment
from helpers.sweeps import SLURM, ended, events, runs, start, starts, states, until

from v1lit.launch.slurm import Slurm
from v1lit.sweep.executor import Job
from v1lit.sweep.slurm_script import Files, trial_script

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc"),
    pytest.mark.timeout(200),
]


class Cluster:
    """A sweep in a folder, and the stand-ins beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder / "cluster"
        self.variables = fake_slurm(self.place)

    def start(self, trials: dict[str, str], **more: Any) -> subprocess.Popen[str]:
        return start(self.folder, trials, executor=SLURM, variables=self.variables, **more)

    def calls(self, program: str) -> list[list[str]]:
        said = (self.place / "calls").read_text().splitlines()
        return [words for words in map(json.loads, said) if words[0] == program]


@pytest.fixture
def cluster(tmp_path: Path) -> Any:
    found = Cluster(tmp_path)
    yield found
    for file in (found.place / "queue").iterdir():
        if (leader := file.read_text()).isdigit() and runs(int(leader)):
            os.killpg(int(leader), signal.SIGKILL)


def test_every_trial_is_a_job_and_failures_are_counted(cluster: Cluster) -> None:
    trials = {"a": "ends", "b": "fails once", "c": "mistake", "d": "killed once"}
    assert ended(cluster.start(trials, jobs=4)) == (3, "")
    found = {name: states(cluster.folder, name) for name in trials}
    again = ["started", "failed", "started", "done"]
    assert found == {"a": ["started", "done"], "b": again, "c": ["started", "failed"], "d": again}
    assert [event["code"] for event in events(cluster.folder) if event["state"] == "failed"].count(137) == 1
    assert events(cluster.folder, "b")[1]["why"] == "error: the disk melted"
    assert {event["job"] for event in events(cluster.folder) if event["state"] == "started"} == set("123456")


def test_jobs_run_on_without_their_driver_and_the_next_one_finds_them(cluster: Cluster) -> None:
    trials = {"a": "waits", "b": "waits", "c": "ends", "d": "fails"}
    driver = cluster.start(trials, jobs=4, attempts=1)
    until(lambda: len(starts(cluster.folder, "ab")) == 2 and len(events(cluster.folder)) >= 4, "all start")
    driver.kill()
    ended(driver)
    assert all(map(runs, starts(cluster.folder, "ab")))
    again = cluster.start(trials, jobs=4, attempts=1)
    until(lambda: states(cluster.folder, "d") == ["started", "failed"], "the next driver sees what has ended")
    (cluster.folder / "go").touch()
    assert ended(again)[0] == 3
    assert {name: states(cluster.folder, name)[-1] for name in trials} == {
        "a": "done", "b": "done", "c": "done", "d": "failed"
    }  # fmt: skip
    assert len(cluster.calls("sbatch")) == 4


def test_a_job_that_no_driver_has_noted_is_found_once_it_runs_and_ends_at_once_later(
    cluster: Cluster,
) -> None:
    """As when the driver is killed while `sbatch` answers."""
    (cluster.place / "waits").touch()
    driver = cluster.start({"a": "ends"})
    until(lambda: events(cluster.folder), "the job waits")
    driver.kill()
    ended(driver)
    (cluster.folder / "it/jobs/a.job").unlink()
    (cluster.place / "waits").unlink()
    assert ended(cluster.start({"a": "ends"}))[0] == 0
    assert [words[-1] for words in cluster.calls("sbatch")] == [str(cluster.folder / "it/jobs/a.sh")] * 2
    # Its script is that of the second start now, as SLURM's copy of it is not: the first one, in its turn.
    script = (cluster.folder / "it/jobs/a.sh").read_text()
    (turn,) = (cluster.folder / "it/jobs/a.turn").read_text().split()
    (cluster.folder / "old.sh").write_text(script.replace(turn, "1"))
    command = ["bash", str(cluster.folder / "old.sh")]
    subprocess.run(command, cwd=cluster.folder, env={**cluster.variables, "SLURM_JOB_ID": "1"}, check=True)
    assert len(starts(cluster.folder, "a")) == 1


def test_a_trial_stopped_by_the_cluster_is_queued_again_under_the_same_number(cluster: Cluster) -> None:
    driver = cluster.start({"a": "waits"})
    until(lambda: starts(cluster.folder, "a"), "the trial starts")
    os.kill(starts(cluster.folder, "a")[0], signal.SIGTERM)
    until(lambda: len(starts(cluster.folder, "a")) == 2, "it starts again")
    (cluster.folder / "go").touch()
    assert ended(driver)[0] == 0
    assert states(cluster.folder, "a") == ["started", "done"]
    assert cluster.calls("scontrol") == [["scontrol", "requeue", "1"]]


@pytest.mark.parametrize("pending", [False, True])
def test_a_driver_that_is_told_to_stop_stops_its_jobs(cluster: Cluster, pending: bool) -> None:
    if pending:
        (cluster.place / "waits").touch()
    driver = cluster.start({"a": "waits", "b": "waits"})
    until(lambda: len(starts(cluster.folder, "ab")) == 2 or pending, "two trials start")
    until(lambda: len(events(cluster.folder)) == 2, "they are noted")
    driver.send_signal(signal.SIGINT)
    assert ended(driver)[0] == 130
    assert not any(map(runs, starts(cluster.folder, "ab")))
    assert [states(cluster.folder, name) for name in "ab"] == [["started", "stopped"]] * 2
    assert not list((cluster.place / "queue").iterdir())
    (cluster.place / "waits").unlink(missing_ok=True)
    (cluster.folder / "go").touch()
    assert ended(cluster.start({"a": "waits", "b": "waits"}))[0] == 0


def test_jobs_are_left_alone_while_slurm_does_not_answer(cluster: Cluster) -> None:
    (cluster.place / "silent").touch()
    driver = cluster.start({"a": "ends"})
    until(lambda: (cluster.folder / "it/jobs/a.ended").exists(), "the trial ends")
    until(lambda: len(cluster.calls("squeue")) > 5, "SLURM is asked again and again")
    assert states(cluster.folder, "a") == ["started"]
    (cluster.place / "silent").unlink()
    assert ended(driver)[0] == 0


def test_a_refused_job_ends_the_driver_with_what_was_said(cluster: Cluster) -> None:
    (cluster.place / "refuses").touch()
    code, said = ended(cluster.start({"a": "ends"}))
    assert code == 1
    assert "sbatch refused a trial with exit code 1 and said: sbatch: error: Batch job submission" in said


def script_of(folder: Path, words: list[str], slurm: Slurm) -> str:
    job = Job("a", tuple(words), {"NAME": "it's $HOME"}, folder / "out.txt", -1)
    return trial_script(job, Files(folder / "the $jobs", "a"), "7", slurm, "my sweep")


def test_the_script_asks_for_what_the_options_say_and_no_value_says_more_than_itself(tmp_path: Path) -> None:
    slurm = Slurm(
        partition="gpu", time="1:00:00", gpus="2", cpus=8, memory="90G", directives=("--exclusive",)
    )
    words = ["python", "--a=$(touch made)", "--b=`touch made`", "--c=' ; touch made"]
    text = script_of(tmp_path, words, slurm)
    said = {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert said == {
        "--job-name=my_sweep-a", "--ntasks-per-node=1", "--gpus-per-node=2", "--cpus-per-task=8", "--mem=90G",
        "--partition=gpu", "--time=1:00:00", "--signal=USR1@300", "--open-mode=append", "--nodes=1",
        "--requeue", "--exclusive",
    }  # fmt: skip
    (tmp_path / "the $jobs").mkdir()
    (tmp_path / "the $jobs/a.turn").write_text("7\n")
    (tmp_path / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@" > words\nenv > variables\n')
    (tmp_path / "srun").chmod(0o755)
    variables = environment(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", SLURM_JOB_ID="5")
    subprocess.run(["bash", "-c", text], cwd=tmp_path, env=variables, check=True)
    assert (tmp_path / "words").read_text().splitlines()[-5:] == ["SLURM_JOB_NAME=interactive", *words]
    assert "NAME=it's $HOME\n" in (tmp_path / "variables").read_text()
    assert (tmp_path / "the $jobs/a.ended").read_text() == "7 0\n"
    assert not (tmp_path / "made").exists()


def test_shellcheck_finds_nothing_in_the_script(tmp_path: Path) -> None:
    slurm = Slurm(modules=("cuda/12.8",), setup=("export HERE=1",))
    (tmp_path / "job.sh").write_text(script_of(tmp_path, [sys.executable, shlex.quote("a b")], slurm))
    command = ["shellcheck", str(tmp_path / "job.sh")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
