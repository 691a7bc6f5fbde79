"""Drives a sweep: starts trials where there is room, notes how they end, and begins broken ones again."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from types import FrameType

from v1lit.errors import GAVE_UP, MISTAKE
from v1lit.sweep.executor import POLL, SECONDS_TO_STOP, Executor, Job, Running
from v1lit.sweep.folder import SweepFolder
from v1lit.sweep.ledger import DONE, FAILED, STARTED, STOPPED, Ledger, pasts

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FINAL = (MISTAKE, GAVE_UP)
"""Exit codes of trials that would end in the same way if they were started again."""
FINISHED = "metrics.json"
"""What a trial writes to its folder last."""

Commands = Mapping[str, Sequence[str]]
"""By trial the words of its command, the program included; in the order in which trials are started."""


class Driver:
    """Runs the trials of one sweep to their ends.

    Args:
        folder: of the sweep, which this process drives.
        commands: of the trials.
        executor: runs them.
        attempts: starts after which a trial that failed each time is given up.
        retry_failed: begin the count anew for trials that were given up earlier.
        watch: is told after every change, and several times a second.
    """

    def __init__(
        self,
        folder: SweepFolder,
        commands: Commands,
        executor: Executor,
        attempts: int = 3,
        retry_failed: bool = False,
        watch: Callable[[Driver], None] = lambda driver: None,
    ) -> None:
        self.folder, self.commands, self.executor = folder, commands, executor
        self.attempts, self.watch = attempts, watch
        self.ledger = Ledger(folder.path)
        self.past = pasts(self.ledger.events())
        self.running: dict[str, Running] = {}
        self.began: dict[str, float] = {}
        self.held: set[str] = set()
        """Trials of which a process of an earlier driver has not ended yet."""
        self.asked: int | None = None
        self._kill_at = float("inf")
        self._anew = {name for name in commands if retry_failed and self.given_up(name)}
        self.waiting = deque(name for name in commands if not (self._is_found(name) or self._is_over(name)))

    def run(self) -> int:
        """Run all trials; returns the exit code.

        That is 0 when all are done, 3 when some were given up, and of a sweep that was stopped 130 after
        Ctrl-C and 143 after a signal.
        """
        before = {number: signal.signal(number, self._take) for number in SIGNALS}
        try:
            while self.running or (self.waiting and self.asked is None):
                self._collect()
                self._start()
                self.watch(self)
                time.sleep(POLL)
        finally:
            self.executor.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.asked is not None:
            return 128 + self.asked
        return GAVE_UP if any(self.past[name].state != DONE for name in self.commands) else 0

    def given_up(self, name: str) -> bool:
        """Whether a trial failed in a way that repeats itself, or as often as it may."""
        past = self.past[name]
        return past.state == FAILED and (past.final or past.failures >= self.attempts)

    def _is_found(self, name: str) -> bool:
        """Whether the executor still has a trial that an earlier driver has started."""
        past = self.past[name]
        running = None if past.state == DONE else self.executor.find(name)
        if running is None:
            return False
        self.running[name], self.began[name] = running, time.monotonic()
        if past.state == STARTED:
            self.began[name] -= max(0.0, time.time() - datetime.fromisoformat(past.last["time"]).timestamp())
        else:  # that driver was killed before it could note it
            past.starts += 1
            self._note(name, STARTED, **running.where)
        return True

    def _is_over(self, name: str) -> bool:
        """Whether nothing is left to do for a trial; closes what a killed driver has left open."""
        past = self.past[name]
        if past.state == STARTED:
            # Only a driver that was killed leaves that behind; perhaps the trial came to its end.
            if (self.folder.trials / name / FINISHED).exists():
                self._note(name, DONE, why="found at a new start of the sweep")
            else:
                self._note(name, STOPPED, why="the driver was killed")
        if past.state == DONE and not (self.folder.trials / name).exists():
            self._note(name, STOPPED, why="its folder is gone")
        return past.state == DONE or (self.given_up(name) and name not in self._anew)

    def _start(self) -> None:
        for name in list(self.waiting):
            if self.asked is not None or not self.executor.has_room():
                return
            lock = self.folder.take(name)
            if lock is None:
                self.held.add(name)
                continue
            self.held.discard(name)
            self.waiting.remove(name)
            try:
                self._begin(name, lock)
            finally:
                with suppress(OSError):
                    os.close(lock)

    def _begin(self, name: str, lock: int) -> None:
        job = Job(name, tuple(self.commands[name]), {}, self.folder.output(name), lock)
        self.running[name] = running = self.executor.start(job)
        if self.asked is not None:  # meanwhile
            running.stop()
        self.began[name] = time.monotonic()
        past = self.past[name]
        past.starts += 1
        anew = name in self._anew
        if anew:
            self._anew.remove(name)
            past.failures, past.final = 0, False
        self._note(name, STARTED, **running.where, **({"anew": True} if anew else {}))

    def _collect(self) -> None:
        if time.monotonic() >= self._kill_at:
            for running in self.running.values():
                running.kill()
        for name, running in list(self.running.items()):
            code = running.poll()
            if code is None:
                continue
            del self.running[name]
            self._end(name, code)

    def _end(self, name: str, code: int) -> None:
        past, seconds = self.past[name], round(time.monotonic() - self.began.pop(name), 3)
        if code == 0:
            self._note(name, DONE, seconds=seconds)
        elif self.asked is not None:
            self._note(name, STOPPED, seconds=seconds, code=code, why="the sweep was stopped")
        else:
            past.failures += 1
            past.final = code in FINAL
            given_up = past.final or past.failures >= self.attempts
            self._note(name, FAILED, seconds=seconds, code=code, final=past.final, given_up=given_up,
                       why=self._last_words(name))  # fmt: skip
            if not given_up:
                self.waiting.append(name)

    def _note(self, name: str, state: str, **more: object) -> None:
        past = self.past[name]
        past.state = state
        self.ledger.append(name, state, past.starts, **more)
        past.last = {"state": state, **more}

    def _last_words(self, name: str) -> str:
        """The last line that a trial has printed."""
        path = self.folder.output(name)
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        errors = [line for line in said if line.startswith("error: ")]
        return next(iter([*errors[-1:], *said[-1:]]), "")

    def _take(self, number: int, frame: FrameType | None = None) -> None:
        """Ask the trials to stop at the first signal, kill them at a second one."""
        again = self.asked is not None
        self.asked = self.asked or number
        self._kill_at = 0.0 if again else time.monotonic() + SECONDS_TO_STOP
        for running in self.running.values():
            running.stop()
