"""A thread beside the training that tells the other ranks where this one stands, and rank 0 who is behind."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

from v1lit.cluster.lookout import Lookout, Stand
from v1lit.cluster.meeting import Meeting

LONGEST_BEAT = 10.0
"""Seconds between two signs of life, at most."""
EXCHANGES = ("torch/distributed/distributed_c10d.py", "v1lit/data/loading/ranks.py")
"""Files of the functions in which Python waits for other ranks."""
SHOWN = 12
"""Lines of a stack that are shown."""


class Watch:
    """Signs of life of this rank in the store, and on rank 0 a look at those of all.

    The connection to the store is one of its own, and no step of the training waits for it.

    Args:
        meeting: of all ranks.
        after: seconds without progress after which a rank is named.
        say: told, on rank 0, who is behind; on the others, that they themselves have not moved.
    """

    def __init__(self, meeting: Meeting, after: float, say: Callable[[str], None]) -> None:
        self.meeting, self.after, self.say = meeting, after, say
        self.stand = Stand()
        """Where this rank stands; set by the training."""
        self.lookout = Lookout(after, meeting.name)
        self._watched = threading.get_ident()
        self._end = threading.Event()
        self._store = meeting.store.again()
        self._beat = 0
        self._own: tuple[tuple[int, int, int], float, bool] = (Stand().progress, time.monotonic(), False)
        self._thread = threading.Thread(target=self._run, name="v1lit-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Say that this rank has come to its end, and end the thread."""
        if not self._end.is_set():
            self._end.set()
            self._thread.join(timeout=LONGEST_BEAT)

    def who(self) -> str:
        """Who is behind right now, as far as the store says."""
        try:
            store = self.meeting.store.again()
            now, lookout = time.monotonic(), self.lookout
            ranks = range(self.meeting.place.size)
            lookout.look(now, [value and Stand(**value) for value in store.of_ranks("stand", ranks)])
            return lookout.who(now)
        except Exception:  # the machine of the store is gone
            return ""

    def _run(self) -> None:
        pause = min(LONGEST_BEAT, self.after / 8)
        try:
            while not self._end.wait(pause):
                self._look()
            self._tell(ended=True)
        except Exception as error:  # the machine of the store is gone: the training will notice
            if not self._end.is_set():
                why = type(error).__name__
                self.say(f"{self.meeting.place.name} cannot tell the others where it stands any more: {why}")

    def _look(self) -> None:
        place, frame = self.meeting.place, sys._current_frames().get(self._watched)
        stand = self._tell(waits=frame is not None and is_exchange(frame))
        now = time.monotonic()
        if place.rank == 0:
            values = self._store.of_ranks("stand", range(place.size))
            for line in self.lookout.look(now, [value and Stand(**value) for value in values]):
                self.say(line)
            return
        progress, since, told = self._own
        if stand.progress != progress:
            self._own = stand.progress, now, False
        elif not told and now - since >= self.after and not stand.waits:
            self._own = progress, since, True
            stack = "".join(traceback.format_stack(frame)[-SHOWN:]) if frame else ""
            self.say(f"{place.name} has not moved for {now - since:.0f} s: {stand.text}\n{stack}".rstrip())

    def _tell(self, waits: bool = False, ended: bool = False) -> Stand:
        self._beat += 1
        stand = replace(self.stand, waits=waits, ended=ended, beat=self._beat)
        self._store.set(f"stand/{self.meeting.place.rank}", stand.as_json())
        return stand


def is_exchange(frame: FrameType | None) -> bool:
    """Whether a thread that stands here waits for other ranks, as far as Python shows."""
    while frame is not None:
        if frame.f_code.co_filename.replace("\\", "/").endswith(EXCHANGES):
            return True
        frame = frame.f_back
    return False
