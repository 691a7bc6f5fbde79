"""`Workers`: the processes that read, and when they end. The training process decides that a run ends."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

Asked = TypeVar("Asked")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Workers:
    """The processes that read and encode."""

    count: int = 0
    pin_memory: bool = False
    prefetch: int = 2
    """Batches that each of them makes ahead."""

    def run(self, reader: Dataset[Read], asked: Iterator[Asked]) -> Iterator[tuple[Asked, Read]]:
        """What the reader makes of what it is asked for, in this order, with any number of workers.

        Worker w of W is asked for the items w, W + w, 2 W + w, ...
        """
        waiting: deque[Asked] = deque()

        def noted() -> Iterator[Asked]:
            for item in asked:
                waiting.append(item)
                yield item

        options: dict[str, Any] = {"prefetch_factor": self.prefetch} if self.count else {}
        _end_readers_at_exit()
        loader: DataLoader[Read] = DataLoader(
            reader,
            batch_size=None,
            sampler=noted(),  # any iterable will do
            num_workers=self.count,
            worker_init_fn=_leave_signals_to_trainer,
            pin_memory=self.pin_memory,
            **options,
        )
        for read in loader:
            yield waiting.popleft(), read


def _leave_signals_to_trainer(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: neither Ctrl-C nor the first SIGTERM ends a reader.

    A terminal and a cluster send them to all processes of a run, whose current step still needs its batches.
    A second SIGTERM ends it, and so does the end of the training process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _first)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@cache
def _end_readers_at_exit() -> None:
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
