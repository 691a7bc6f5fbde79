"""Trials as jobs of SLURM, which run on when the driver ends, and are found by the next one."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from v1lit.files import to_disk, write_atomically
from v1lit.launch.slurm import Slurm
from v1lit.sweep.executor import ExecutorError, Job
from v1lit.sweep.slurm_script import Files, trial_script

LOOKS = 3
"""After which a job that SLURM does not know, and that has not said how it ended, is taken for lost: what
it has written on another machine may be seen late."""
CANCELLED = 137
"""Exit code of a job that was ended and could not say so itself: that of SIGKILL."""


class SlurmJob:
    """A trial that is a job.

    Args:
        files: of the trial.
        turn: name of its start.
        number: of the job.
        looks: asks SLURM about all jobs from time to time.
    """

    def __init__(self, files: Files, turn: str, number: str, looks: Looks) -> None:
        self.files, self.turn, self.number, self.looks = files, turn, number, looks
        self.code: int | None = None
        self.missed = 0
        """Looks at which SLURM did not know the job."""

    @property
    def where(self) -> Mapping[str, object]:
        """The number of the job."""
        return {"job": self.number}

    def poll(self) -> int | None:
        """Its exit code; None while it waits, runs, or waits again because SLURM has stopped it."""
        self.looks.look()
        if self.code is not None:
            self.files.number.unlink(missing_ok=True)
        return self.code

    def stop(self) -> None:
        """Take it out of the queue, or have it save and end; said to SLURM at the next look."""
        self.files.stop.touch()
        self.looks.stopping.add(self.number)

    def kill(self) -> None:
        """End it; said to SLURM at the next look."""
        self.files.stop.touch()
        self.looks.killing.add(self.number)

    def found(self, known: bool) -> None:
        """Take in whether SLURM knows the job, as long as it has not ended."""
        if known:
            self.missed = 0
            return
        self.missed += 1
        words = self.files.ended.read_text(encoding="utf-8").split() if self.files.ended.exists() else []
        if words[:1] == [self.turn]:
            self.code = int(words[1])
        elif self.missed >= LOOKS or self.number in self.looks.stopping | self.looks.killing:
            self.code = code_of(self.number)


class Looks:
    """Speaks to SLURM about all jobs at once, and not too often.

    Args:
        seconds: between two looks.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.jobs: list[SlurmJob] = []
        self.stopping: set[str] = set()
        self.killing: set[str] = set()
        self._next = 0.0

    def look(self) -> None:
        """Pass on what was asked for, and see which jobs are still there, if it is time to."""
        urgent = 1.0 if self.stopping or self.killing else self.seconds
        if time.monotonic() < min(self._next, self._next - self.seconds + urgent):
            return
        self._next = time.monotonic() + self.seconds
        self.jobs = [job for job in self.jobs if job.code is None]
        numbers = {job.number for job in self.jobs}
        if stopping := sorted(self.stopping & numbers):
            call("scancel", "--state=PENDING", *stopping)
            call("scancel", "--state=RUNNING", "--signal=TERM", *stopping)
        if killing := sorted(self.killing & numbers):
            call("scancel", *killing)
        said = call("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%i")
        if said is None:
            return  # SLURM does not answer: nothing is known, and the jobs run on
        known = set(said.split())
        for job in self.jobs:
            job.found(job.number in known)


class SlurmJobs:
    """Runs each trial as a job.

    The jobs outlive the driver. Files in `folder` say which there are and how they ended; SLURM is asked
    only whether a job still waits or runs.

    Args:
        folder: for scripts and files of the jobs.
        sweep: name of the sweep.
        slurm: where and how the cluster runs a job.
        jobs: jobs that wait or run at a time.
        seconds: between two looks at the queue.
    """

    def __init__(self, folder: Path, sweep: str, slurm: Slurm, jobs: int, seconds: float = 10.0) -> None:
        self.folder, self.sweep, self.slurm, self.jobs = folder.absolute(), sweep, slurm, jobs
        self.looks = Looks(seconds)

    def has_room(self) -> bool:
        """Whether fewer than `jobs` of them wait or run."""
        return sum(job.code is None for job in self.looks.jobs) < self.jobs

    def start(self, job: Job) -> SlurmJob:
        """Hand a trial to SLURM; raises ExecutorError where that refuses it."""
        self.folder.mkdir(exist_ok=True)
        files, turn = Files(self.folder, job.name), str(time.time_ns())
        for path in (files.stop, files.ended, files.number):
            path.unlink(missing_ok=True)
        write_atomically(files.script, trial_script(job, files, turn, self.slurm, self.sweep))
        # From here on, a job that a driver started, and was killed before it could note it, ends at once.
        write_atomically(files.turn, f"{turn}\n")
        to_disk(files.turn)
        output = str(job.output.absolute()).replace("%", "%%")
        number = _submit([f"--output={output}", f"--chdir={Path.cwd()}", str(files.script)])
        write_atomically(files.number, f"{number}\n")
        return self._known(files, turn, number)

    def find(self, name: str) -> SlurmJob | None:
        """The job of a trial whose end no driver has noted yet."""
        files = Files(self.folder, name)
        with suppress(FileNotFoundError):
            number = files.number.read_text(encoding="utf-8").strip()
            turn = files.turn.read_text(encoding="utf-8").strip()
            files.stop.unlink(missing_ok=True)
            return self._known(files, turn, number)
        return None

    def close(self) -> None:
        """Leave the jobs to SLURM."""

    def _known(self, files: Files, turn: str, number: str) -> SlurmJob:
        job = SlurmJob(files, turn, number, self.looks)
        self.looks.jobs.append(job)
        return job


def has_jobs(folder: Path) -> bool:
    """Whether jobs may still run whose end no driver has noted."""
    return any(folder.glob("*.job"))


def code_of(number: str) -> int:
    """The exit code of a job that did not say it, from SLURM's accounts where they are kept."""
    said = call(
        "sacct", "--allocations", "--noheader", "--parsable2", "--format=ExitCode", f"--jobs={number}"
    )
    code, _, signal = (said or "").strip().partition("\n")[0].partition(":")
    if signal.isdigit() and int(signal):
        return 128 + int(signal)
    return int(code) if code.isdigit() and int(code) else CANCELLED


def call(*words: str) -> str | None:
    """What a command of SLURM prints; None where it fails or is not there."""
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def _submit(words: Sequence[str]) -> str:
    """The number of a new job."""
    if shutil.which("sbatch") is None:
        raise ExecutorError("--executor=slurm needs sbatch, which is not here: start it on a login node")
    done = subprocess.run(
        ["sbatch", "--parsable", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    number = done.stdout.strip().partition(";")[0]
    if done.returncode or not number.isdigit():
        said = " ".join(done.stderr.split()) or "nothing"
        raise ExecutorError(
            f"sbatch refused a trial with exit code {done.returncode} and said: {said}\n"
            "jobs that run are not ended by that, and the same command resumes the sweep; --jobs=N has "
            "fewer of them wait at a time"
        )
    return number
