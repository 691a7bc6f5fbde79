"""Signals in a process that reads data: the training process decides when a run ends."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from functools import cache
from types import FrameType


def leave_signals_to_trainer(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: neither Ctrl-C nor the first SIGTERM ends a reader.

    A terminal and a cluster send them to all processes of a run, whose current step still needs its batches.
    A second SIGTERM ends it, and so does the end of the training process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _first)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@cache
def end_readers_at_exit() -> None:
    """When this process exits, kill readers that are left, as where a run was stopped amid an epoch.

    multiprocessing would send each of them one SIGTERM and wait. What is registered last is done first.
    """
    atexit.register(_kill_readers, os.getpid())


def _kill_readers(process: int) -> None:
    if os.getpid() == process:
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()


def _first(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    if os.getppid() == 1:  # nobody is left to read for
        os.kill(os.getpid(), number)
