"""A file of answers, one JSON object per line, that any number of processes fill and none can spoil.

While rows are missing, every process appends to a file of its own in the hidden folder `.NAME.parts`; a
process that is killed leaves at most half a line, which the next one cuts off. Once all rows are there, they
are written in order, aside, and get the name. `.NAME.settings.json` says what they were made with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from v1lit.files import aside, remove, to_disk, write_atomically


class Place(NamedTuple):
    """Where the line of a row stands."""

    file: Path
    start: int
    length: int


class OtherSettingsError(ValueError):
    """The file was made, or begun, with other settings."""


class AnswersFile:
    """The answers to some rows.

    Args:
        path: of the file.
        total: rows.
        settings: what answers depend on.

    Raises OtherSettingsError where there are answers that were made with others.
    """

    def __init__(self, path: Path, total: int, settings: Mapping[str, Any]) -> None:
        self.path, self.total = path, total
        self.parts = path.with_name(f".{path.name}.parts")
        self._own: IO[bytes] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._agree(path.with_name(f".{path.name}.settings.json"), {"rows": total, **settings})

    @property
    def complete(self) -> bool:
        """Whether all rows are answered, and the file is there."""
        return self.path.exists()

    def _agree(self, file: Path, settings: Mapping[str, Any]) -> None:
        known: Any = None
        with suppress(FileNotFoundError, ValueError):
            known = json.loads(file.read_text(encoding="utf-8"))
        if known == settings:
            return
        if self.path.exists() or self.parts.exists():
            begun = f"{self.path} is there already" if self.path.exists() else f"{self.parts} has answers"
            raise OtherSettingsError(
                f"{begun}, made with other settings{_differences(known, settings)}\n"
                "give the same again, another file to write to, or remove it"
            )
        write_atomically(file, json.dumps(settings, indent=2) + "\n")

    def clean(self) -> None:
        """Remove what a process left that was killed when all was done."""
        remove(self.parts)

    def done(self) -> dict[int, Place]:
        """The rows that are answered; of one that was answered twice the first answer."""
        places: dict[int, Place] = {}
        for file in sorted(self.parts.glob("*.jsonl")):
            for row, place in _lines(file):
                places.setdefault(row, place)
        return places

    def begin(self, rank: int) -> None:
        """Append to the file of this process from now on; half a line at its end is cut off."""
        self.parts.mkdir(exist_ok=True)
        path = self.parts / f"rank-{rank:05d}.jsonl"
        own = path.open("ab")
        end = 0
        for _, place in _lines(path):
            end = place.start + place.length
        own.truncate(end)
        self._own = own

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines, each with its `row`, and wait until they are on the disk."""
        assert self._own is not None
        self._own.write(b"".join(map(_encoded, lines)))
        self._own.flush()
        os.fsync(self._own.fileno())

    def finish(self) -> bool:
        """Put all rows into the file, if none is missing; returns whether that is so."""
        if self._own is not None:
            self._own.close()
            self._own = None
        places = self.done()
        if len(places) < self.total:
            return self.complete  # another process may have been faster
        try:
            with aside(self.path) as unfinished:
                _gather((places[row] for row in range(self.total)), unfinished)
                to_disk(unfinished)
        except FileNotFoundError:
            if not self.complete:
                raise
        remove(self.parts)
        return True

    def failed(self) -> Iterator[dict[str, Any]]:
        """The rows of the file that have an `error`."""
        with self.path.open("rb") as file:
            for line in file:
                if b'"error"' in line and "error" in (row := json.loads(line)):
                    yield row

    def forget_failed(self) -> None:
        """Take the rows with an `error` out again, so that they are asked once more."""
        if self.complete:
            self.parts.mkdir(exist_ok=True)
            write_atomically(self.parts / "earlier.jsonl", self.path.read_bytes())
            self.path.unlink()
        for file in self.parts.glob("*.jsonl"):
            lines = (_read(place) for _, place in _lines(file))
            write_atomically(file, b"".join(line for line in lines if "error" not in json.loads(line)))


def _lines(file: Path) -> Iterator[tuple[int, Place]]:
    """The whole lines of a file, with their rows, up to the first that is damaged."""
    start = 0
    with file.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)["row"] if line.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError):
                row = None
            if not isinstance(row, int):
                return
            yield row, Place(file, start, len(line))
            start += len(line)


def _read(place: Place) -> bytes:
    with place.file.open("rb") as file:
        file.seek(place.start)
        return file.read(place.length)


def _gather(places: Iterable[Place], out: Path) -> None:
    """Copy lines to a file, in this order."""
    opened: dict[Path, IO[bytes]] = {}
    try:
        with out.open("wb") as target:
            for place in places:
                if place.file not in opened:
                    opened[place.file] = place.file.open("rb")
                opened[place.file].seek(place.start)
                target.write(opened[place.file].read(place.length))
    finally:
        for file in opened.values():
            file.close()


def _encoded(line: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, in an id say
        return json.dumps(line).encode() + b"\n"


def _differences(known: Any, settings: Mapping[str, Any]) -> str:
    if not isinstance(known, dict):
        return ", which nobody knows"
    names = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
    told = (f"{name} was {known.get(name)!r} and is {settings.get(name)!r}" for name in names[:3])
    return f": {'; '.join(told)}"
