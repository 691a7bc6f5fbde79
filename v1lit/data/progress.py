"""A progress bar over shards, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(doing: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar of `total` shards; gives a function that counts one more shard with so many examples."""
    from v1lit.console import counting_bar

    numbers = "shards, {task.fields[n]:,} examples, {task.fields[rate]:,.0f} examples/s"
    with counting_bar(numbers, shown) as bar:
        task = bar.add_task(doing, total=total, n=0, rate=0.0)
        examples = 0

        def advance(more: int) -> None:
            nonlocal examples
            examples += more
            bar.update(task, advance=1, n=examples, rate=examples / max(1e-9, bar.tasks[task].elapsed or 0.0))

        yield advance
