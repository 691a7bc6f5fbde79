"""Work spread over processes that gives its results in order, holds few of them, and stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

from v1lit.console import counting_bar

Task = TypeVar("Task")
Result = TypeVar("Result")
AHEAD = 4
"""Tasks per process that are handed out before their results are asked for."""


class WorkerDiedError(RuntimeError):
    """A process ended in the middle of its work."""


def count_workers(workers: int | None, tasks: int) -> int:
    """Processes for so many tasks: as asked for, one per core where None. ValueError below 1."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 process is needed")
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(workers, tasks))


def ordered(
    work: Callable[..., Result], tasks: Iterable[Task], workers: int, *given: Any
) -> Generator[Result, None, None]:
    """`work(task, *given)` of every task, in the order of the tasks, by `workers` processes; 1: by this one.

    `work` is a function of a module; `given` is sent to every process once. An error in it, Ctrl-C, or
    leaving the loop early ends all processes.

    Raises:
        WorkerDiedError: a process was killed, most likely for its memory.
    """
    if workers == 1:
        yield from (work(task, *given) for task in tasks)
        return
    context = get_context("spawn")  # forking a process that has threads can hang
    stop_reader, stop = context.Pipe(duplex=False)
    with ProcessPoolExecutor(workers, context, _begin_worker, (stop_reader, given)) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                with _ctrl_c_later():
                    waiting.append(pool.submit(_work, work, task))
                if len(waiting) >= AHEAD * workers:
                    yield _next(waiting)
            while waiting:
                yield _next(waiting)
        except BrokenProcessPool as error:
            raise WorkerDiedError(
                "a process ended early (killed for memory? called from a script without "
                "`if __name__ == '__main__'`?); start again with fewer --workers"
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
def _ctrl_c_later() -> Iterator[None]:
    """Processes that start inside do not see Ctrl-C while they still import; here it arrives afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_given: tuple[Any, ...] = ()
"""In a worker: what it was given at its start."""


def _work(work: Callable[..., Result], task: Any) -> Result:
    return work(task, *_given)


def _begin_worker(stop: connection.Connection, given: tuple[Any, ...]) -> None:
    """Leave Ctrl-C to the main process, and end when it says so or is gone."""
    global _given
    _given = given
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel, stop])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def progress_bar(doing: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar of `total` shards; gives a function that counts one more shard with so many examples."""
    numbers = "shards, {task.fields[n]:,} examples, {task.fields[rate]:,.0f} examples/s"
    with counting_bar(numbers, shown) as bar:
        task = bar.add_task(doing, total=total, n=0, rate=0.0)
        examples = 0

        def advance(more: int) -> None:
            nonlocal examples
            examples += more
            bar.update(task, advance=1, n=examples, rate=examples / max(1e-9, bar.tasks[task].elapsed or 0.0))

        yield advance
