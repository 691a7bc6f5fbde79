"""Runs on two nodes, as processes of this machine, whose ranks die or are told to stop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.launched_runs import environment, last_weights, launch, same, write_recipe

from v1lit.launch.local import free_port
from v1lit.launch.node import SECONDS_TO_END
from v1lit.training.attempts import attempts

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc"),
    pytest.mark.timeout(300),
    pytest.mark.slow,
]
IN_SLURM = {
    "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "job", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "n[1-2]",
    "SLURM_JOB_NODELIST": "n[1-2]",
}  # fmt: skip
"""As a task of srun has them."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, torch.Tensor]:
    """Weights after the last step of a run in which nothing happens."""
    folder = write_recipe(tmp_path_factory.mktemp("whole"), data, "never")
    done = launch(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return last_weights(folder)


def test_a_killed_rank_ends_the_others_and_all_resume_with_nothing_lost_or_repeated(
    undisturbed: dict[str, torch.Tensor], data: Path, tmp_path: Path
) -> None:
    folder = write_recipe(tmp_path, data, "killed")
    done = launch(folder, variables=IN_SLURM)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "auto-requeue" not in said
    first, second = attempts(folder / "runs" / "it")
    assert (first.step, second.step, second.ended) == (0, 2, "done")
    assert first.reason.startswith("rank 1 was ended by SIGKILL, as the system does when memory is used up")
    lost = [failure for failure in first.failures if failure.rank == 0]
    assert all(failure.follows for failure in lost)
    died = (folder / "seen-by-1").stat().st_mtime
    assert all(failure.time - died < SECONDS_TO_END for failure in first.failures)
    assert same(last_weights(folder), undisturbed)


def test_three_failures_without_progress_stop_the_run_with_the_reason_of_the_first(
    data: Path, tmp_path: Path
) -> None:
    folder = write_recipe(tmp_path, data, "fails")
    done = launch(folder)
    said = done.stdout + done.stderr
    assert done.returncode == 3, said
    assert [attempt.step for attempt in attempts(folder / "runs" / "it")] == [0, 0, 0]
    (error,) = [line for line in said.splitlines() if line.startswith("error: 3 starts")]
    assert error.startswith("error: 3 starts from step 0 failed without coming further; the first: ")
    assert "RuntimeError: the disk melted" in error
    assert "(rank 1 on " in error


SRUN = """#!{python}
import os, subprocess, sys
words = sys.argv[sys.argv.index("v1lit") + 1:]
tasks = [subprocess.Popen([sys.executable, "-m", "v1lit.cli.main", *words],
         env=dict(os.environ, SLURM_NODEID=str(n), SLURM_PROCID=str(n), SLURM_LOCALID="0")) for n in (0, 1)]
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
case "$1 $2" in
  "show hostnames") echo 127.0.0.1; echo 127.0.0.1 ;;
  *) echo "$@" >> requeued ;;
esac
"""


def test_the_script_of_slurm_queues_a_job_again_that_was_told_to_stop_and_it_resumes(
    undisturbed: dict[str, torch.Tensor], data: Path, tmp_path: Path
) -> None:
    """With stand-ins for `srun` and `scontrol`; the signal reaches a launcher, as SLURM's do, and no rank."""
    folder = write_recipe(tmp_path, data, "asked")
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    options = ["--nodes=2", "--gpus-per-node=1", f"--port={free_port()}"]
    printed = subprocess.run(
        [sys.executable, "-m", "v1lit.cli.main", "launch", "slurm", "recipe.yaml", *options],
        cwd=folder, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    (folder / "job.sh").write_text(printed.stdout)
    variables = environment(**IN_SLURM, PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")

    def run() -> subprocess.CompletedProcess[str]:
        command = ["bash", "job.sh"]
        return subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=280
        )

    stopped = run()
    assert stopped.returncode == 143, stopped.stdout + stopped.stderr
    assert "stopped by SIGUSR1 after step 4" in stopped.stderr
    assert (folder / "requeued").read_text() == "requeue 77\n"
    again = run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert (folder / "requeued").read_text() == "requeue 77\n"
    starts = attempts(folder / "runs" / "it")
    assert [start.step for start in starts] == [0, 4]
    assert not any(start.failed for start in starts)
    assert same(last_weights(folder), undisturbed)
