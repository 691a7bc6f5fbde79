"""Work spread over processes that returns its results in order, holds few of them, and stops at once."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from types import ModuleType
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from v1lit.console import screen, text_column

Task = TypeVar("Task")
Result = TypeVar("Result")
AHEAD = 4
"""Tasks per process that are handed out before their results are asked for."""

LAUNCHER = "V1LIT_LAUNCHER"
"""Names the process that launched this one and stops it, by its number."""


class WorkerDiedError(RuntimeError):
    """A process ended in the middle of its work."""


def end_with_launcher() -> None:
    """Have this process told to stop, by SIGTERM, when the one that launched it is killed; on Linux only.

    What was killed can tell nobody, and its ranks would write to a folder in which others begin again.
    """
    launcher = os.environ.pop(LAUNCHER, None)  # not for the processes that this one starts
    if launcher is None or not sys.platform.startswith("linux"):
        return
    signal_of_parent = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(signal_of_parent, signal.SIGTERM)
    if os.getppid() != int(launcher):  # it was killed before this was said
        os.kill(os.getpid(), signal.SIGTERM)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_workers(workers: int | None, tasks: int) -> int:
    """Processes for that many tasks: as asked for, one per core where None. Raises ValueError below 1."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 process is needed")
    return max(1, min(workers or available_cores(), tasks))


def ordered(
    work: Callable[..., Result], tasks: Iterable[Task], workers: int, *shared: Any
) -> Generator[Result, None, None]:
    """Yields `work(task, *shared)` of every task, in the order of the tasks, made by `workers` processes.

    One worker is this process. `work` is a function of a module; `shared` is sent to every process once. An
    error in it, Ctrl-C, or leaving the loop early ends all processes. Raises WorkerDiedError where a process
    was killed, most likely for its memory.
    """
    if workers == 1:
        yield from (work(task, *shared) for task in tasks)
        return
    context = get_context("spawn")  # forking a process that has threads can hang
    stop_reader, stop = context.Pipe(duplex=False)
    uses_main = b"__main__" in pickle.dumps((work, shared))
    with ProcessPoolExecutor(workers, context, _begin_worker, (stop_reader, shared)) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                with _starting_processes(uses_main):
                    waiting.append(pool.submit(_work, work, task))
                if len(waiting) >= AHEAD * workers:
                    yield _next(waiting)
            while waiting:
                yield _next(waiting)
        except BrokenProcessPool as error:
            raise WorkerDiedError(
                "a process ended early (killed for memory?); start again with fewer --workers"
            ) from error
        finally:
            if waiting:  # left early: what is under way is of no use
                stop.close()
                pool.shutdown(cancel_futures=True)


def _next(waiting: deque[Future[Result]]) -> Result:
    result = waiting[0].result()  # stays in line until it is there, see `finally`
    waiting.popleft()
    return result


@contextmanager
def _starting_processes(uses_main: bool) -> Iterator[None]:
    """Processes that start inside see no Ctrl-C while they import; here it arrives afterwards.

    Nor do they import the main module, unless it is used: it may be a script without
    `if __name__ == "__main__"`, which would run again, or one that imports much more than the work needs.
    """
    main, masked = sys.modules["__main__"], hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]) if masked else set()
    try:
        if not uses_main:
            sys.modules["__main__"] = ModuleType("__main__")
        yield
    finally:
        sys.modules["__main__"] = main
        if masked:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_shared: tuple[Any, ...] = ()
"""In a worker: what it was sent at its start."""


def _work(work: Callable[..., Result], task: Any) -> Result:
    return work(task, *_shared)


def _begin_worker(stop: connection.Connection, shared: tuple[Any, ...]) -> None:
    """Leave Ctrl-C to the main process, and end when it says so or is gone."""
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel, stop])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def progress_bar(
    doing: str, total: int, shown: bool, unit: str | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, with a function that counts that many more of `total` units.

    Without a `unit` it is of shards, and the function counts one more shard with that many examples.
    """
    after = unit or "shards, {task.fields[n]:,} examples, {task.fields[rate]:,.0f} examples/s"
    columns = (text_column("{task.description}"), BarColumn(), MofNCompleteColumn(), text_column(after))
    console = screen(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not shown) as bar:
        task = bar.add_task(doing, total=total, n=0, rate=0.0)
        examples = 0

        def advance(more: int) -> None:
            nonlocal examples
            examples += more
            rate = examples / max(1e-9, bar.tasks[task].elapsed or 0.0)
            bar.update(task, advance=more if unit else 1, n=examples, rate=rate)

        yield advance
