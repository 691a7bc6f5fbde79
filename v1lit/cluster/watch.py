"""A thread beside the training that tells the other ranks where this one stands, and rank 0 who is behind."""

from __future__ import annotations

import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
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
        lost_after: seconds without a sign of life after which a rank is lost, and the store as well.
        say: told, on rank 0, who is behind; on the others, that they themselves have not moved.
        lose: told, on every rank that is left, who is lost: to end this process, whatever it waits for.
    """

    def __init__(
        self,
        meeting: Meeting,
        after: float,
        lost_after: float,
        say: Callable[[str], None],
        lose: Callable[[str], None],
    ) -> None:
        self.meeting, self.after, self.lost_after, self.say, self.lose = meeting, after, lost_after, say, lose
        self.stand = Stand()
        """Where this rank stands; set by the training."""
        self.lookout = Lookout(after, meeting.name)
        self._watched = threading.get_ident()
        self._end = threading.Event()
        self._store = meeting.store.again()
        self._answered = time.monotonic()
        self._pause = min(LONGEST_BEAT, after / 8, lost_after / 8)
        self._beat = 0
        self._own: tuple[tuple[int, int, int], float, bool] = (Stand().progress, time.monotonic(), False)
        self._thread = threading.Thread(target=self._run, name="v1lit-watch", daemon=True)
        self._guard = threading.Thread(target=self._end_if_unanswered, name="v1lit-guard", daemon=True)

    def start(self) -> None:
        """Begin to give signs of life."""
        self._thread.start()
        self._guard.start()

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
        while not self._end.wait(self._pause):
            try:
                self._look()
                self._answered = time.monotonic()
            except Exception:  # the machine of the store is gone: mostly the training notices first
                self._connect_again()
        with suppress(Exception):
            self._tell(ended=True)

    def _end_if_unanswered(self) -> None:
        """Where a link is cut, a question to the store ends neither with an answer nor with an error."""
        while not self._end.wait(self._pause):
            silent = time.monotonic() - self._answered
            if silent >= self.lost_after:
                place = self._store.place
                self.lose(
                    f"{self.meeting.name(0)} is lost, or the way to it: nothing has answered at "
                    f"{place.address}:{place.port} for {silent:.0f} s (run.lost_after)"
                )

    def _connect_again(self) -> None:
        place = self._store.place
        with suppress(Exception):
            socket.create_connection((place.address, place.port), timeout=2).close()  # torch waits for longer
            self._store = self._store.again()

    def _look(self) -> None:
        place, frame = self.meeting.place, sys._current_frames().get(self._watched)
        stand = self._tell(waits=frame is not None and is_exchange(frame))
        now = time.monotonic()
        if place.rank == 0:
            values = self._store.of_ranks("stand", range(place.size))
            for line in self.lookout.look(now, [value and Stand(**value) for value in values]):
                self.say(line)
            if lost := self.lookout.lost(now, self.lost_after):
                text = (
                    f"no sign of life from {self.meeting.names(lost)} for {self.lost_after:g} s "
                    "(run.lost_after): lost, or the way there"
                )
                self._store.set("lost", text)
                self._end.wait(2 * self._pause)  # until the others have read it: the store is in this process
                self.lose(text)
            return
        if (text := self._store.get("lost")) is not None:
            self.lose(text)
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
