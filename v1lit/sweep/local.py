"""Trials on this machine: several at a time, each in a process group of its own that ends with the driver."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from v1lit.processes import LAUNCHER, available_cores
from v1lit.sweep.executor import Job, end_all

VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"


class Process:
    """A trial that is a process of this machine.

    Args:
        process: the leader of a process group of its own.
        place: which of the places for trials it takes.
    """

    def __init__(self, process: subprocess.Popen[bytes], place: int) -> None:
        self.process, self.place = process, place

    @property
    def where(self) -> Mapping[str, object]:
        """Host and process."""
        return {"host": socket.gethostname(), "pid": self.process.pid}

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self.process.returncode is None:
            ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return None
            self.kill()  # what it has left behind, before another group can have its number
        code = self.process.wait()
        return code if code >= 0 else 128 - code

    def stop(self) -> None:
        """Ask the first process only: it ends those that it has started, once it needs them no more."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class Local:
    """Runs `jobs` trials at a time.

    Where there are fewer GPUs than the trials want together, several share one.

    Args:
        jobs: trials at a time.
        gpus: as `CUDA_VISIBLE_DEVICES` names them, dealt out in turn; none for trials on CPUs.
        gpus_each: GPUs of one trial, or the share of one.
        threads: `OMP_NUM_THREADS` of one trial.
    """

    def __init__(self, jobs: int, gpus: Sequence[str] = (), gpus_each: float = 1, threads: int = 1) -> None:
        self.jobs, self.gpus, self.gpus_each, self.threads = jobs, list(gpus), gpus_each, threads
        self.running: list[Process] = []

    def has_room(self) -> bool:
        """Whether fewer than `jobs` trials run, as far as the driver has been told."""
        self.running = [one for one in self.running if one.process.returncode is None]
        return len(self.running) < self.jobs

    def start(self, job: Job) -> Process:
        """Start a trial, from the main thread: the system ends it with the thread that started it."""
        taken = {one.place for one in self.running}
        place = next(number for number in range(self.jobs) if number not in taken)
        environment = {**os.environ, THREADS: str(self.threads), **self._visible(place), **job.variables}
        environment[LAUNCHER] = str(os.getpid())
        with job.output.open("ab") as output:
            process = subprocess.Popen(
                job.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[job.lock],
            )
        self.running.append(Process(process, place))
        return self.running[-1]

    def find(self, name: str) -> None:
        """None: a trial ends with its driver."""

    def close(self) -> None:
        """Have all that still runs save and end, as when the driver itself failed."""
        end_all(self.running)

    def _visible(self, place: int) -> dict[str, str]:
        if not self.gpus:
            return {}
        first, count = int(place * self.gpus_each + 1e-9), max(1, int(self.gpus_each))
        chosen = [self.gpus[(first + number) % len(self.gpus)] for number in range(count)]
        return {VISIBLE: ",".join(dict.fromkeys(chosen))}


def jobs_by_default(gpus: Sequence[str], each: float) -> int:
    """Trials at a time: as many as the GPUs are enough for, or the cores where there are none.

    Args:
        gpus: that there are.
        each: of them, or else of the cores, that one trial takes.
    """
    return max(1, int((len(gpus) or available_cores()) / each + 1e-9))


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    named = os.environ.get(VISIBLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
