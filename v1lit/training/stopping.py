"""Ctrl-C and the signals of a cluster: when they are obeyed, and what is said in the end."""

from __future__ import annotations

import os
import signal
import threading
from functools import cache
from types import FrameType
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class RunStopped(Exception):  # noqa: N818  # nothing went wrong
    """Someone stopped the run; what it leaves behind is complete. The message says when it was stopped."""

    def __init__(self, signum: int, when: str) -> None:
        super().__init__(signum, when)
        self.signum, self.when = signum, when

    @property
    def exit_code(self) -> int:
        # All other signals end the run with the exit code of SIGTERM.
        return 128 + (signal.SIGINT if self.signum == signal.SIGINT else signal.SIGTERM)

    def __str__(self) -> str:
        name = "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name
        return f"stopped by {name} {self.when}"


class StopRequests:
    """Receives Ctrl-C, SIGTERM and SIGUSR1 while the `with` block runs.

    While `patient`, the first one is only noted in `received`, for the training loop to stop at a step's end;
    another Ctrl-C raises KeyboardInterrupt. Otherwise the first one raises it already.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.patient = False
        self.active = False
        self._interrupts = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.active = True
            _leave_children_alone()
            self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        self.patient = self.active = False
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def listen(self) -> None:
        """Take the signals (again), within the `with` block: in this process, from whoever has them now."""
        if self.active and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_before": {}}  # functions of this process

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, self.received or number
        self._interrupts += number == signal.SIGINT
        # A cluster may repeat itself; only a person who asks again is in a hurry.
        if not self.patient or (not first and number == signal.SIGINT and self._interrupts > 1):
            raise KeyboardInterrupt
        if first and getattr(rank_zero_only, "rank", 0) == 0:
            # Not through sys.stderr, in the middle of whose own writing this may be.
            os.write(2, b"\nstopping after this step, with a checkpoint; another Ctrl-C stops at once\n")


@cache
def _leave_children_alone() -> None:
    """Let processes forked from this one take signals as processes do.

    A handler of Python's would be called late or, of a process that waits for a lock, perhaps never; and who
    ends a pool of processes sends each SIGTERM once and waits.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_take_signals_as_usual)


def _take_signals_as_usual() -> None:
    for number in SIGNALS:
        if isinstance(getattr(signal.getsignal(number), "__self__", None), StopRequests):
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
