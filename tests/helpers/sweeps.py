"""Sweeps of stand-in trials: short scripts in place of `lightning run`, driven by a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from helpers.launched_runs import environment

TRIAL = """
import os, signal, sys, time
from pathlib import Path
from v1lit.processes import end_with_launcher

end_with_launcher()
name, how = sys.argv[1:]
place = Path("it/trials") / name
place.mkdir(parents=True, exist_ok=True)
with (place / "starts").open("a") as file:
    file.write(f"{os.getpid()}\\n")
starts = len((place / "starts").read_text().splitlines())
if how == "waits":
    while not Path("go").exists():
        time.sleep(0.02)
elif how == "saves":
    def save(*_):
        time.sleep(1)
        (place / "saved").touch()
        sys.exit(143)

    signal.signal(signal.SIGTERM, save)
    (place / "ready").touch()
    while True:
        time.sleep(0.02)
elif how == "deaf":
    signal.signal(signal.SIGTERM, lambda *_: (place / "told").touch())
    while True:
        time.sleep(0.02)
elif how == "fails":
    sys.exit("error: the disk melted")
elif how == "mistake":
    print("error: no such key", flush=True)
    sys.exit(2)
elif how == "fails once" and starts == 1:
    sys.exit("error: the disk melted")
elif how == "killed once" and starts == 1:
    os.kill(os.getpid(), 9)
"""
DRIVER = """
import json, sys
from pathlib import Path
from v1lit.sweep.driver import Driver
from v1lit.sweep.folder import SweepFolder, SweepFolderError
from v1lit.sweep.local import Local
from v1lit.launch.slurm import Slurm
from v1lit.sweep.ray_tasks import RayTasks
from v1lit.sweep.slurm import SlurmJobs

def joined(address, cpus=1, gpus=0, threads=1):
    tasks = RayTasks(Path("it"), address, jobs, cpus, gpus, threads, wait=1)
    tasks.connect()
    return tasks

jobs, attempts, retry, trials, executor, python = json.loads(sys.argv[1])
commands = {name: [python, "trial.py", name, how] for name, how in trials.items()}
folder = SweepFolder(Path("it"))
try:
    with folder.driven():
        sys.exit(Driver(folder, commands, eval(executor), attempts, retry).run())
except SweepFolderError as error:
    sys.exit(f"error: {error}")
"""
TINY: dict[str, Any] = {
    "base": "tiny_qwen",
    "changes": {
        "trainer.val_check_interval": 100,
        "trainer.enable_progress_bar": False,
        "data.batch_size": 2,
        "data.num_workers": 0,
        "data.source.options.examples": 40,
        "data.source.options.val_examples": 4,
        "run.checkpoint_every": 1,
        "run.peak_tflops": 1,
        "run.report_examples": 2,
        "run.report_max_new_tokens": 4,
        "run.pictures": 0,
        "run.export": False,
    },
    "axes": {"model.pointer.key_source": ["hidden", "embedding"]},
    "budget": {"steps": 4},
}
"""A sweep file of real trials that take seconds."""
LOCAL = "Local(jobs)"
SLURM = "SlurmJobs(Path('it/jobs'), 'it', Slurm(), jobs, 0.05)"


def start(
    folder: Path,
    trials: dict[str, str],
    jobs: int = 2,
    attempts: int = 3,
    retry: bool = False,
    executor: str = LOCAL,
    variables: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> subprocess.Popen[str]:
    """A driver of stand-in trials in `folder`; each name with how the trial behaves.

    `executor` is how the driver's script makes it, `variables` the environment, `python` runs trials.
    """
    (folder / "trial.py").write_text(TRIAL)
    (folder / "driver.py").write_text(DRIVER)
    return subprocess.Popen(
        [sys.executable, "driver.py", json.dumps([jobs, attempts, retry, trials, executor, python])],
        cwd=folder,
        env=variables or environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(driver: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a driver that comes to its end."""
    said, _ = driver.communicate(timeout=100)
    return driver.returncode, said


def events(folder: Path, trial: str | None = None) -> list[dict[str, Any]]:
    """The ledger of the sweep in `folder`, or one trial's part of it."""
    path = folder / "it" / "ledger.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [event for event in found if trial in (None, event["trial"])]


def states(folder: Path, trial: str) -> list[str]:
    """What the ledger says of a trial, oldest first."""
    return [event["state"] for event in events(folder, trial)]


def starts(folder: Path, trials: Iterable[str]) -> list[int]:
    """Process numbers of all starts of these trials, as these have noted them."""
    files = [folder / "it" / "trials" / name / "starts" for name in trials]
    return [int(line) for file in files if file.exists() for line in file.read_text().splitlines()]


def until(happened: Callable[[], Any], what: str) -> None:
    """Wait until something has happened."""
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, f"still waiting: {what}"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
