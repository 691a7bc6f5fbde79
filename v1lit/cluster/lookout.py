"""Who of the ranks has fallen behind: decided from where each stands, without a clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

PHASES = (
    "loading the weights", "data", "forward", "backward", "the optimizer step", "validation", "a checkpoint",
    "the end",
)  # fmt: skip
"""What a rank can be at, in the order of a micro-batch; the first comes before all, the last after all."""
WAITS = {"data": "waiting for data", "a checkpoint": "writing a checkpoint"}
"""Words for a phase, where its name alone would not say it."""


@dataclass(frozen=True)
class Stand:
    """Where a rank stands."""

    batch: int = 0
    """Micro-batches that it has begun to read."""
    phase: str = PHASES[0]
    """One of `PHASES`."""
    part: int = 0
    """Batches of the validation that are done."""
    step: int = 0
    """Optimizer steps that are done."""
    waits: bool = False
    """Whether it waits for other ranks, as far as Python shows."""
    beat: int = 0
    """Counts up with every sign of life."""
    ended: bool = False
    """Whether it has come to its end, and gives no more signs."""

    @property
    def progress(self) -> tuple[int, int, int]:
        """Grows with what is done; who waits for others in a phase is further than who is still at it."""
        return self.batch, 2 * PHASES.index(self.phase) + self.waits, self.part

    @property
    def text(self) -> str:
        """The step, and what the rank is at."""
        doing = WAITS.get(self.phase, self.phase)
        if self.waits:
            doing = f"waiting for the others in {self.phase}"
        return f"step {self.step}, {doing}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Seen:
    stand: Stand
    moved: float
    """When its progress was last another one."""
    alive: float
    """When it last gave a sign of life."""
    named: float | None = None
    """Since when it had not moved, if it was named for it."""


class Lookout:
    """Names the ranks that have not moved for a while and hold up the others, once; and again when they move.

    Args:
        after: seconds.
        name: a rank with its host, as text.
    """

    def __init__(self, after: float, name: Callable[[int], str]) -> None:
        self.after, self.name = after, name
        self._seen: dict[int, _Seen] = {}
        self._all_named = False

    def look(self, now: float, stands: Sequence[Stand | None]) -> list[str]:
        """What is to be said when the ranks stand like this at `now`, in seconds of any clock.

        A rank that has not said yet where it stands, None, has met the others all the same: it can be lost.
        """
        lines = []
        for rank, stand in enumerate(stands):
            if stand is None:
                self._seen.setdefault(rank, _Seen(Stand(), now, now))
            else:
                lines += self._take(now, rank, stand)
        for rank in self._behind(now):
            seen = self._seen[rank]
            if seen.named is None:
                seen.named = seen.moved
                lines.append(self._line(now, rank))
        return lines + self._standstill(now)

    def who(self, now: float) -> str:
        """Who is behind right now, however long; empty where nobody is."""
        running = self._running()
        if not running:
            return ""
        furthest = max(seen.stand.progress for seen in running.values())
        late = [
            rank for rank, seen in running.items() if seen.stand.progress < furthest and not seen.stand.waits
        ]
        return "; ".join(self._line(now, rank) for rank in late)

    def lost(self, now: float, after: float) -> list[int]:
        """Once a rank has given no sign of life for `after` seconds: all that are silent for half of it."""
        silent = {rank: now - seen.alive for rank, seen in self._running().items()}
        if max(silent.values(), default=0.0) < after:
            return []
        return [rank for rank, seconds in silent.items() if seconds >= after / 2]

    def _take(self, now: float, rank: int, stand: Stand) -> list[str]:
        seen = self._seen.get(rank)
        if seen is None:
            self._seen[rank] = _Seen(stand, now, now)
            return []
        lines = []
        if stand.progress != seen.stand.progress or stand.ended:
            if seen.named is not None:
                lines = [
                    f"{self.name(rank)} moves again, after {now - seen.named:.0f} s at {seen.stand.text}"
                ]
            seen.moved, seen.named = now, None
            self._all_named = False
        if stand.beat != seen.stand.beat:
            seen.alive = now
        seen.stand = stand
        return lines

    def _running(self) -> dict[int, _Seen]:
        return {rank: seen for rank, seen in self._seen.items() if not seen.stand.ended}

    def _behind(self, now: float) -> list[int]:
        """Ranks that have not moved for long, though others are further, and do not wait themselves."""
        running = self._running()
        furthest = max((seen.stand.progress for seen in running.values()), default=(0, 0, 0))
        still = [rank for rank, seen in running.items() if now - seen.moved >= self.after]
        late = [
            rank
            for rank in still
            if running[rank].stand.progress < furthest and not running[rank].stand.waits
        ]
        silent = [rank for rank in still if now - running[rank].alive >= self.after]
        return sorted({*silent, *late})

    def _standstill(self, now: float) -> list[str]:
        running = self._running()
        still = running and all(now - seen.moved >= self.after for seen in running.values())
        if not still or self._all_named or any(seen.named is not None for seen in running.values()):
            return []
        self._all_named = True
        longest = min(now - seen.moved for seen in running.values())
        texts = list(dict.fromkeys(seen.stand.text for seen in running.values()))
        return [f"no rank has moved for {longest:.0f} s: all are at {', or '.join(texts[:3])}"]

    def _line(self, now: float, rank: int) -> str:
        seen = self._seen[rank]
        silent = now - seen.alive
        if silent >= self.after:
            return f"no sign of life from {self.name(rank)} for {silent:.0f} s; it was at {seen.stand.text}"
        return f"{self.name(rank)} is behind: for {now - seen.moved:.0f} s at {seen.stand.text}"
