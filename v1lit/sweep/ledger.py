"""The ledger of a sweep: one line of JSON for everything that happens to a trial, on the disk at once."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from v1lit.files import to_disk

FILE = "ledger.jsonl"
STARTED, DONE, FAILED, STOPPED = "started", "done", "failed", "stopped"


@dataclass
class Past:
    """What the ledger says of one trial."""

    state: str = ""
    """Of its last event; empty where nothing has happened yet."""
    starts: int = 0
    failures: int = 0
    """Since it was last begun anew."""
    final: bool = False
    """Whether it failed in a way that would repeat itself."""
    seconds: float = 0.0
    """That it has run, over all starts that ended."""
    last: dict[str, Any] = field(default_factory=dict)
    """The last event."""


class Ledger:
    """Appends events to the ledger of one folder, and reads them.

    Args:
        folder: of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def append(self, trial: str, state: str, attempt: int, **more: Any) -> None:
        """Write one event; it is on the disk when this returns."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        event = {"time": now, "trial": trial, "state": state, "attempt": attempt, **more}
        line = (json.dumps(event) + "\n").encode()
        is_new = not self.path.exists()
        with self.path.open("ab+") as file:
            if file.tell() and self._half_a_line(file):
                line = b"\n" + line  # of a machine that went down while it was written
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            to_disk(self.path.parent)

    @staticmethod
    def _half_a_line(file: Any) -> bool:
        file.seek(-1, os.SEEK_END)
        return bool(file.read(1) != b"\n")

    def events(self) -> list[dict[str, Any]]:
        """All events, oldest first; a line that was never finished is left out."""
        return list(read_events(self.path))


def read_events(path: Path) -> Iterable[dict[str, Any]]:
    """The events of a ledger, oldest first; none where there is no file."""
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and {"trial", "state"} <= event.keys():
            yield event


def pasts(events: Iterable[dict[str, Any]]) -> dict[str, Past]:
    """What happened to each trial; those that nothing has happened to have an empty one."""
    found: dict[str, Past] = defaultdict(Past)
    for event in events:
        past, state = found[event["trial"]], event["state"]
        past.state, past.last = state, event
        past.starts += state == STARTED
        past.failures += state == FAILED
        past.final = bool(event.get("final", False))
        if event.get("anew"):
            past.failures = 0
        past.seconds += float(event.get("seconds") or 0.0)
    return found
