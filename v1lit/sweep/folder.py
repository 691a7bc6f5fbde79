"""The folder of a sweep: what it consists of, who drives it, and which of its trials still run."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from v1lit.errors import first_of
from v1lit.files import to_disk, write_atomically
from v1lit.sweep.config import Sweep
from v1lit.sweep.grid import TRIALS, Trial

FILE = "sweep.json"
LOCKS, OUTPUT = "locks", "output"
"""Folders with a lock and the printed output of each trial."""


class SweepFolderError(ValueError):
    """The folder cannot be used for this sweep: another one's, or driven by another process."""


class SweepFolder:
    """Where one sweep lies.

    Args:
        path: of the folder, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials = path / TRIALS

    def described(self) -> dict[str, Any]:
        """What `sweep.json` says; raises SweepFolderError where there is none."""
        try:
            content: dict[str, Any] = json.loads((self.path / FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            what = "it has no sweep.json" if self.path.is_dir() else "there is no such folder"
            raise SweepFolderError(f"{self.path} is no folder of a sweep: {what}") from None
        except ValueError as error:
            raise SweepFolderError(f"{self.path / FILE} cannot be read: {error}") from error
        return content

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write `sweep.json`; raises SweepFolderError where it is there and says something else."""
        if (self.path / FILE).exists():
            before = self.described()
            if differences := list(_differences(before, json.loads(json.dumps(description)))):
                raise SweepFolderError(
                    f"{self.path} holds a sweep that differs: {first_of(differences)}\n"
                    "resume it with its own file, or give another folder: --folder=..."
                )
            return
        write_atomically(self.path / FILE, json.dumps(description, indent=2) + "\n")
        to_disk(self.path / FILE)
        to_disk(self.path)

    def output(self, trial: str) -> Path:
        """The file with all that a trial has printed."""
        return self.path / OUTPUT / f"{trial}.txt"

    @contextmanager
    def driven(self) -> Iterator[None]:
        """Keep other drivers away; raises SweepFolderError if there is one already."""
        for name in (TRIALS, LOCKS, OUTPUT):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        note = self.path / LOCKS / "driver.txt"
        lock = FileLock(self.path / LOCKS / "driver.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = note.read_text(encoding="utf-8").strip() if note.exists() else "another process"
            raise SweepFolderError(
                f"{self.path} is driven by {who} already\nwatch it: v1lit sweep status {self.path}"
            ) from None
        try:
            write_atomically(note, f"process {os.getpid()} on {os.uname().nodename}\n")
            yield
        finally:
            note.unlink(missing_ok=True)
            lock.release()

    def take(self, trial: str) -> int | None:
        """The lock of a trial as a descriptor to inherit; None while a process of an earlier start has it.

        It is free once all that have inherited it are gone.
        """
        descriptor = os.open(self.path / LOCKS / f"{trial}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def is_driven(self) -> bool:
        """Whether a driver holds the folder now."""
        path = self.path / LOCKS / "driver.lock"
        if not path.exists():
            return False
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False


def description(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any]:
    """What `sweep.json` says of a sweep."""
    return {
        "name": sweep.name,
        "recipe": sweep.base,
        "axes": {axis.name: [choice.label for choice in axis.choices] for axis in sweep.axes},
        "seeds": list(sweep.seeds),
        "metrics": list(sweep.metrics),
        "baseline": None if sweep.baseline is None else dict(sweep.baseline),
        "budget": {sweep.budget.kind: sweep.budget.amount},
        "trials": [trial.plain() for trial in trials],
    }


def _differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """What of two descriptions differs, in words: key, the value in the folder, the value now."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            inner = f"{key}.{name}" if key else name
            yield from _differences(before.get(name), now.get(name), inner)
    elif key == "trials" and isinstance(before, list) and isinstance(now, list):
        old, new = ({trial["name"]: trial for trial in trials} for trials in (before, now))
        for name in dict.fromkeys([*old, *new]):
            if name not in old or name not in new:
                yield f"trial {name} is {'new' if name in new else 'gone'}"
            else:
                yield from _differences(old[name], new[name], f"trial {name}")
    elif before != now:
        yield f"{key} was {json.dumps(before)} and is {json.dumps(now)}"
