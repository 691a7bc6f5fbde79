"""A limit on the time that one example may take."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TookTooLongError(BaseException):
    """What runs inside `time_limit` has used up its time.

    Not an Exception: libraries that turn every failure into one of their own must not turn this one.
    """


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `TookTooLongError` inside the block once it has run for `seconds`; None for no limit.

    By an alarm signal, so only where the block runs in a process's main thread, as it does in the
    DataLoader's workers; elsewhere, and on systems without alarms, there is no limit. Compiled code that does
    not return to Python is interrupted when it does. An alarm that somebody else has set goes off later, by
    the time spent here.
    """
    if (
        seconds is None
        or not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    before = signal.signal(signal.SIGALRM, _raise)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


def _raise(number: int, frame: FrameType | None) -> None:
    raise TookTooLongError
