"""The starts of a run that a launcher repeats: where each began, how it ended, and when it is enough.

A folder `attempts/` in the run's folder has one folder per start: `began.json` and `ended.json`, which the
first rank writes, and a `rank-N.json` of every rank that failed. They only exist under a launcher,
which names itself in the environment: starts that a person makes are not counted.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from v1lit.errors import GAVE_UP
from v1lit.files import free_path, write_atomically

FOLDER = "attempts"
"""Of a run's folder."""
LAUNCH = "V1LIT_LAUNCH"
"""Name of the launch that this process belongs to; a person's next launch has another one."""
MOST = "V1LIT_MAX_FAILURES"
"""How many starts may fail from the same step."""
DEFAULT_MOST = 3


class NoProgressError(Exception):
    """A run failed again and again without coming further; its launcher does not start it again."""

    exit_code = GAVE_UP


@dataclass(frozen=True)
class Failure:
    """What a rank, or who watched over it, said at its end."""

    rank: int
    """Its number."""
    node: str
    """Name of its machine."""
    reason: str
    """What happened."""
    follows: bool
    """Whether it only lost the others, which ended before it."""
    time: float
    """When it was written, by the clock of the file system, seconds since 1970."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run."""

    launch: str
    """Which launcher made it."""
    start: str
    """The same on all ranks of a start, and another at the next."""
    step: int
    """Optimizer steps that the checkpoint had from which it resumed."""
    ended: str
    """How, if it came to its end or was stopped; else empty."""
    failures: tuple[Failure, ...]
    """Of its ranks, the first one first."""

    @property
    def failed(self) -> bool:
        """Whether a rank failed, or the machine with all that could have said so."""
        return bool(self.failures) or not self.ended

    @property
    def reason(self) -> str:
        """What the first rank said that did not only lose the others."""
        causes = [failure for failure in self.failures if not failure.follows] or list(self.failures)
        if not causes:
            return "nobody said why; whole machines may have been lost"
        first = causes[0]
        return f"{first.reason} (rank {first.rank} on {first.node})"


def begin(folder: Path, step: int, rank: int) -> None:
    """Note that a start begins from `step`; called on all ranks, before anything that may fail.

    Raises NoProgressError if as many as are allowed have failed from there: on all ranks, so that none waits.
    """
    launch = os.environ.get(LAUNCH)
    if not launch:
        return
    start = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
    before = [attempt for attempt in reversed(attempts(folder)) if attempt.start != start or rank == 0]
    failed = list(takewhile(lambda one: one.launch == launch and one.step >= step and one.failed, before))
    most = int(os.environ.get(MOST, DEFAULT_MOST))
    if len(failed) >= most:
        raise NoProgressError(
            f"{len(failed)} starts from step {step} failed without coming further; "
            f"the first: {failed[-1].reason}\n"
            f"{folder / FOLDER} says more of each; launched again, or with a larger --max-failures, it starts"
        )
    if rank == 0:
        place = folder / FOLDER / f"{len(_folders(folder)) + 1:04}"
        place.mkdir(parents=True)
        _write(place / "began.json", launch=launch, start=start, step=step)


def end(folder: Path, how: str) -> None:
    """Note on the first rank that this start has come to its end, or was stopped."""
    if os.environ.get(LAUNCH) and (folders := _folders(folder)):
        _write(folders[-1] / "ended.json", how=how)


def note_failure(folder: Path, rank: int, reason: str, follows: bool = False) -> None:
    """Note why a rank failed in the newest start; `follows` says that it only lost the others."""
    if folders := _folders(folder):
        place = free_path(folders[-1] / f"rank-{rank}.json")
        _write(place, rank=rank, node=socket.gethostname(), reason=reason, follows=follows)


def attempts(folder: Path) -> list[Attempt]:
    """All starts of a run, the first one first; what is half written is left out."""
    return [attempt for place in _folders(folder) if (attempt := _attempt(place)) is not None]


def _attempt(place: Path) -> Attempt | None:
    began = _read(place / "began.json")
    if began is None:
        return None
    found = sorted(_failures(place), key=lambda failure: failure.time)
    ended = _read(place / "ended.json") or {"how": ""}
    return Attempt(
        launch=str(began["launch"]),
        start=str(began["start"]),
        step=int(str(began["step"])),
        ended=str(ended["how"]),
        failures=tuple(found),
    )


def _failures(place: Path) -> Iterator[Failure]:
    for path in place.glob("rank-*.json"):
        if (said := _read(path)) is not None:
            yield Failure(
                rank=int(str(said["rank"])),
                node=str(said["node"]),
                reason=str(said["reason"]),
                follows=bool(said["follows"]),
                time=path.stat().st_mtime,
            )


def _folders(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("[0-9][0-9][0-9][0-9]"))


def _write(path: Path, **content: object) -> None:
    write_atomically(path, json.dumps(content, ensure_ascii=False) + "\n")


def _read(path: Path) -> dict[str, object] | None:
    try:
        content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content
