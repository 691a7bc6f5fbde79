"""What a task of Ray does on its node: it runs one trial there, and says how that ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from v1lit.sweep.executor import POLL, Job
from v1lit.sweep.folder import SweepFolder
from v1lit.sweep.local import Local

STOPPED = 128 + signal.SIGTERM
"""Exit code of a trial that was asked to stop before it was started."""


def run_trial(here: str, folder: str, name: str, command: Sequence[str], threads: int) -> int | str:
    """Run a trial on this node; returns its exit code, or in words why no trial can run here.

    SIGINT, which is how `ray.cancel` reaches a task, has the trial save and end; a second one kills it.

    Args:
        here: directory in which the driver was started.
        folder: of the sweep; absolute.
        name: of the trial.
        command: its words.
        threads: `OMP_NUM_THREADS`.
    """
    place = SweepFolder(Path(folder))
    if problem := _problem(Path(here), place, command[0]):
        return problem
    asked = 0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1

    # Workers of a cluster that a script has started in its background ignore it.
    before = signal.signal(signal.SIGINT, ask)
    try:
        os.chdir(here)
        # What an earlier driver has started, on any node, may take its time to end.
        while (lock := place.take(name)) is None and not asked:
            time.sleep(POLL)
        if lock is None:
            return STOPPED
        # The nodes may be those of a job of SLURM, whose tasks are not the ranks of a trial.
        variables = {"SLURM_JOB_NAME": "interactive"}
        try:
            job = Job(name, tuple(command), variables, place.output(name), lock)
            running = Local(1, threads=threads).start(job)
        finally:
            os.close(lock)
        told = 0
        while (code := running.poll()) is None:
            if told < asked:
                running.stop() if asked == 1 else running.kill()
                told = asked
            time.sleep(POLL)
        return code
    finally:
        signal.signal(signal.SIGINT, before)


def _problem(here: Path, folder: SweepFolder, python: str) -> str:
    """Why this node can run no trial; empty where it can."""
    if not folder.path.is_dir():
        return f"does not see the sweep's folder {folder.path}"
    if not folder.is_driven():
        return f"sees no locks of other nodes in {folder.path}"
    if not here.is_dir():
        return f"does not see {here}, where the sweep was started"
    if not os.access(python, os.X_OK):
        return f"has no {python}, with which the sweep was started"
    return ""
