"""What a sweep needs of whatever runs its trials: this machine, or a cluster."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

POLL = 0.2
"""Seconds between two looks at the trials."""
SECONDS_TO_STOP = 120.0
"""Until trials that were asked to stop are killed."""


@dataclass(frozen=True)
class Job:
    """One start of one trial."""

    name: str
    """Of the trial."""
    command: tuple[str, ...]
    """Its words; the program is this Python."""
    variables: Mapping[str, str]
    """Added to the environment."""
    output: Path
    """File that gets all that it prints, behind what is there."""
    lock: int
    """Descriptor of the trial's lock, which a process on this machine inherits, and what it forks: whoever
    starts the trial next sees that it still runs. An executor on other machines leaves it alone."""


class ExecutorError(RuntimeError):
    """Trials cannot be started: what was tried, and what to do."""


class Running(Protocol):
    """A trial that was started."""

    @property
    def where(self) -> Mapping[str, object]:
        """What the ledger says of it, such as host and process."""

    def poll(self) -> int | None:
        """Its exit code, 128 and the signal's number where it was killed; None while it runs."""

    def stop(self) -> None:
        """Ask it to save a checkpoint and to end."""

    def kill(self) -> None:
        """End it now, and all that it has started."""


class Executor(Protocol):
    """Runs trials, several at a time.

    The driver calls it from one thread alone. Trials on this machine have ended when `close` returns; those
    on a cluster may run on, for the next driver to find.
    """

    jobs: int
    """Trials that it can run at a time."""

    def has_room(self) -> bool:
        """Whether one more trial can be started now."""

    def start(self, job: Job) -> Running:
        """Start a trial; raises ExecutorError where that would fail for any other one too."""

    def find(self, name: str) -> Running | None:
        """A trial that an earlier driver has started, and that runs or has ended since."""

    def close(self) -> None:
        """Give back what was taken to run trials."""


def end_all(running: Sequence[Running]) -> None:
    """Have trials save and end, and kill those that do not in time."""
    for one in running:
        one.stop()
    end = time.monotonic() + SECONDS_TO_STOP
    for one in running:
        while one.poll() is None:
            if time.monotonic() >= end:
                one.kill()
            time.sleep(POLL)
