"""What every rank prints, kept in a file of its own in the run's folder; rank 0 writes on the screen too."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

LOGS = "logs"
"""The folder of the logs in that of a run."""
REDRAWN = re.compile(r"\r(?!\n)|\x1b\[[0-9]*[AKJ]|\x1b\[\?25")
"""In what is written to a line that changes, such as a progress bar."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def log_of(folder: Path, rank: int) -> Path:
    """The log of a rank in the folder of a run."""
    return folder / LOGS / f"rank-{rank:04}.log"


@contextmanager
def rank_log(folder: Path, rank: int, about: str) -> Iterator[None]:
    """Keep stdout and stderr of this process in the log of its rank, below a dated line.

    Of rank 0 what Python writes, which appears on the screen as before; progress bars are left out. Of the
    other ranks everything, in place of the screen. An exception is written to the log as well.

    Args:
        folder: of the run, in which the first rank has already made what it wanted.
        rank: of this process.
        about: for the dated line: what begins here.
    """
    path = log_of(folder, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="replace", buffering=1) as file:
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        file.write(f"---- {now} rank {rank} on {socket.gethostname()}, process {os.getpid()}: {about}\n")
        with _copied_to(file) if rank == 0 else _moved_to(file):
            try:
                yield
            except BaseException:
                file.write(traceback.format_exc())
                raise


@contextmanager
def _moved_to(file: TextIO) -> Iterator[None]:
    """Let stdout and stderr, of C code and of child processes too, go into the file alone."""
    _flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    try:
        for number, _ in kept:
            os.dup2(file.fileno(), number)
        yield
    finally:
        _flush()
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)


@contextmanager
def _copied_to(file: TextIO) -> Iterator[None]:
    """Let what Python writes to stdout and stderr go into the file too.

    The streams stay the objects that they are: handlers of logs have kept them.
    """
    streams: list[Any] = list(dict.fromkeys((sys.stdout, sys.stderr)))
    try:
        for stream in streams:
            stream.write = _both(stream.write, file)
        yield
    finally:
        for stream in streams:
            vars(stream).pop("write", None)


def _both(write: Callable[[str], int], file: TextIO) -> Callable[[str], int]:
    def write_both(text: str) -> int:
        if not REDRAWN.search(text):
            file.write(COLOURS.sub("", text))
        return write(text)

    return write_both


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
