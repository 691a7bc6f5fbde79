"""What a sweep shows: a table that follows its trials in a terminal, one line per change elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from rich.live import Live
from rich.table import Table

from v1lit.console import Console
from v1lit.sweep.driver import Driver
from v1lit.sweep.folder import SweepFolder
from v1lit.sweep.ledger import DONE, FAILED, STARTED, Past, pasts, read_events
from v1lit.sweep.ledger import FILE as LEDGER
from v1lit.sweep.progress import Progress, read_progress

SECONDS_BETWEEN_READS = 1.0
NAMES = {"": "waits", STARTED: "runs"}
MOST_ROWS = 40
"""Trials that a table in the terminal names; those that run come first."""


def sweep_table(
    folder: SweepFolder, pasts: Mapping[str, Past], running: Mapping[str, float], lines: int
) -> Table:
    """The trials of a sweep with state, step, metric and time left.

    Args:
        folder: of the sweep.
        pasts: what happened to each trial.
        running: trials that run, with the seconds since they were started.
        lines: most trials to name.
    """
    described = folder.described()
    trials, metric = described["trials"], described["metrics"][0]
    steps = {trial["name"]: int(trial["changes"].get("trainer.max_steps", -1)) for trial in trials}
    counts = Counter(_word(pasts.get(name, Past()), name in running) for name in steps)
    title = f"{described['name']}: " + ", ".join(f"{number} {state}" for state, number in counts.items())
    table = Table(title=f"{title}{_left(pasts, running, len(steps))}", title_justify="left")
    table.add_column("trial")
    table.add_column("state")
    for column in ("step", metric, "time", "left"):
        table.add_column(column, justify="right")
    order = sorted(steps, key=lambda name: (name not in running, pasts.get(name, Past()).state == ""))
    for name in order[:lines]:
        past, seconds = pasts.get(name, Past()), running.get(name)
        known = read_progress(folder, name, metric) if past.state else Progress()
        table.add_row(name, _state(past, name in running), _steps(known, steps[name]),
                      "" if known.metric is None else f"{known.metric:.4g}",
                      _clock(past.seconds + (seconds or 0.0)) if past.state else "",
                      _time_left(known, steps[name], seconds))  # fmt: skip
    if len(order) > lines:
        table.add_row(f"and {len(order) - lines} more", "", "", "", "", "")
    return table


def _word(past: Past, runs: bool) -> str:
    if past.state == STARTED and not runs:
        return "left behind"
    if past.state == FAILED and past.last.get("given_up"):
        return "given up"
    return NAMES.get(past.state, past.state)


def _state(past: Past, runs: bool) -> str:
    word = _word(past, runs)
    if past.state == FAILED:
        return f"{word}, failed {past.failures}x" if word != past.state else f"{word} {past.failures}x"
    return f"{word}, start {past.starts}" if past.starts > 1 and past.state != DONE else word


def _steps(known: Progress, most: int) -> str:
    if known.step is None:
        return ""
    return f"{known.step}/{most}" if most > 0 else f"{known.step}"


def _time_left(known: Progress, most: int, seconds: float | None) -> str:
    if seconds is None or not known.step or most <= 0:
        return ""
    return _clock(seconds / known.step * (most - known.step))


def _left(pasts: Mapping[str, Past], running: Mapping[str, float], trials: int) -> str:
    """How long the sweep will take, from the trials that are done, if as many run at a time as now."""
    took = [past.seconds for past in pasts.values() if past.state == DONE]
    if not took or not running:
        return ""
    mean = sum(took) / len(took)
    more = mean * (trials - len(took)) - sum(min(mean, seconds) for seconds in running.values())
    return f"; about {_clock(max(0.0, more) / len(running))} left"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def failures(folder: SweepFolder, pasts: Mapping[str, Past]) -> Iterator[str]:
    """A line for every trial that has failed last: what it said, and where all is that it has printed."""
    for name, past in pasts.items():
        if past.state == FAILED:
            said = past.last.get("why") or "it has printed nothing"
            yield f"{name}: exit code {past.last.get('code')}: {said} ({folder.output(name)})"


class Watch:
    """Shows a driver's sweep while it runs; called by it several times a second.

    Args:
        console: a terminal gets a table that is renewed; all else a line for each change.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._read = 0.0
        self._said: dict[str, Any] = {}

    def __enter__(self) -> Watch:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, driver: Driver) -> None:
        over = not driver.running  # perhaps it is the last call
        if self._live is None:
            self._tell(driver)
        elif over or time.monotonic() - self._read >= SECONDS_BETWEEN_READS:
            self._read = time.monotonic()
            running = {name: time.monotonic() - began for name, began in driver.began.items()}
            lines = min(MOST_ROWS, max(4, self.console.height - 6))
            self._live.update(sweep_table(driver.folder, driver.past, running, lines), refresh=True)

    def _tell(self, driver: Driver) -> None:
        """Print a line for every trial of which something has happened since."""
        done = sum(past.state == DONE for past in driver.past.values())
        for name in driver.commands:
            past = driver.past[name]
            now = (past.state, past.starts)
            if past.last and self._said.get(name) != now:
                self._said[name] = now
                why = past.last.get("why")
                self.console.print(
                    f"{name}: {_state(past, True)}{f' ({why})' if why else ''}; {done} of "
                    f"{len(driver.commands)} done", soft_wrap=True
                )  # fmt: skip
        for name in driver.held - self._said.get("held", set()):
            self.console.print(f"{name}: waits for a process of an earlier driver to end", soft_wrap=True)
        self._said["held"] = set(driver.held)


def status(folder: SweepFolder, now: float) -> tuple[Table, list[str]]:
    """The table of a sweep that another process may drive, and lines about what has failed.

    `now` is the time, seconds since 1970.
    """
    found, driven = pasts(read_events(folder.path / LEDGER)), folder.is_driven()
    running = {
        name: now - datetime.fromisoformat(past.last["time"]).timestamp()
        for name, past in found.items()
        if past.state == STARTED and driven
    }
    table = sweep_table(folder, found, running, len(folder.described()["trials"]))
    return table, list(failures(folder, found))
