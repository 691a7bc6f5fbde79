"""Examples that could not be used: counted, listed in a file, and too many of them stop the run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from v1lit.data.config import StreamConfig
from v1lit.data.errors import BadDataError
from v1lit.files import write_atomically

SKIPPED_FILE = "skipped.jsonl"
AT_FIRST = 1_000
"""Examples for which `max_bad_fraction` is granted from the beginning."""


@dataclass(frozen=True)
class Skipped:
    """One example that was left out."""

    split: str
    epoch: int
    step: int
    """Optimizer step of the epoch, from 0; in validation the batch."""
    position: int
    """Epoch index."""
    shard: str
    key: str | None
    number: int
    """Of the example in its shard."""
    kind: str
    """One of `v1lit.data.errors.KINDS`."""
    reason: str

    @property
    def identity(self) -> tuple[str, int, int, str]:
        """What tells it from others; whole shards all have the epoch index -1."""
        return self.split, self.epoch, self.position, self.shard

    def is_before(self, epoch: int, step: int) -> bool:
        """Whether a run that resumes at this step of training does not meet it again."""
        return self.split != "train" or (self.epoch, self.step) < (epoch, step)


class SkipList:
    """Skipped examples of a run, the same on every rank; rank 0 writes them to a file.

    Args:
        config: how many are allowed.
        path: of the file, one JSON object per line; None to write none.
    """

    def __init__(self, config: StreamConfig, path: Path | None = None) -> None:
        self.config, self.path = config, path
        self.read = 0
        self.left_out = 0
        """Examples that the map has left out; they do not count as read."""
        self.skipped: list[Skipped] = []
        """Those that this process has noted."""
        self.before: Counter[str] = Counter()
        """How many of every kind there were in the run that is resumed."""
        self._listed: set[tuple[str, int, int, str]] | None = None

    @property
    def count(self) -> int:
        """Skipped examples of the run."""
        return self.before.total() + len(self.skipped)

    def saved(self, epoch: int, step: int) -> dict[str, Any]:
        """What a checkpoint keeps before this step of training, the same on every rank."""
        kinds = Counter(skip.kind for skip in self.skipped if skip.is_before(epoch, step))
        return {
            "examples_read": self.read,
            "left_out": self.left_out,
            "skipped": dict(self.before + kinds),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take up the list of a resumed run, without what was skipped at its step or later."""
        epoch, step, self.skipped = int(state["epoch"]), int(state["steps"]), []
        self.read, self.left_out = int(state["examples_read"]), int(state.get("left_out", 0))
        self.before = Counter(state["skipped"])
        if self.path is not None and self.path.is_file():
            kept = [skip for skip in _listed_in(self.path) if skip.is_before(epoch, step)]
            write_atomically(self.path, "".join(map(_line, kept)))
            self._listed = {skip.identity for skip in kept}

    def note(self, read: int, skipped: Sequence[Skipped], in_a_row: int, left_out: int) -> None:
        """Count examples that were asked for, and those of them that were skipped.

        Raises BadDataError if these are too many, or where the map leaves out the first thousand, and all.

        Args:
            read: examples that were asked for, but for those that the map has left out.
            skipped: those of them that could not be used.
            in_a_row: most skipped one after another, on any rank.
            left_out: examples that the map has left out.
        """
        self.read += read
        self.left_out += left_out
        if left_out and not self.read and self.left_out >= AT_FIRST:
            raise BadDataError(f"data.map leaves out every example so far, {self.left_out} of them")
        if not skipped:
            return
        self.skipped.extend(skipped)
        self._write(skipped)
        if self.config.on_bad == "stop":
            raise BadDataError(f"{_of(skipped[0])}\nskip such examples with data.stream.on_bad=skip")
        too_many = self.count > self.config.max_bad_fraction * max(self.read, AT_FIRST)
        if too_many or in_a_row > self.config.max_bad_in_a_row:
            limit = (
                f"more than data.stream.max_bad_fraction={self.config.max_bad_fraction:g} allows"
                if too_many
                else f"more than data.stream.max_bad_in_a_row={self.config.max_bad_in_a_row} in a row"
            )
            raise BadDataError(f"{self.summary()}: {limit}; the last one: {_of(skipped[-1])}")

    def summary(self) -> str:
        """How many were skipped, of how many, of which kinds, and where they are listed."""
        kinds = self.before + Counter(skip.kind for skip in self.skipped)
        which = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        where = f"; listed in {self.path}" if self.path is not None else ""
        return f"skipped {self.count} of {self.read} examples ({which}){where}"

    def _write(self, skipped: Iterable[Skipped]) -> None:
        if self.path is None:
            return
        if self._listed is None:
            listed = _listed_in(self.path) if self.path.is_file() else []
            self._listed = {skip.identity for skip in listed}
        new = [skip for skip in skipped if skip.identity not in self._listed]
        if new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, new)))
        self._listed.update(skip.identity for skip in new)


def _listed_in(path: Path) -> list[Skipped]:
    """What a file lists; a line that was cut off when the run was killed is none."""
    skips = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, TypeError):
            skips.append(Skipped(**json.loads(line)))
    return skips


def _line(skip: Skipped) -> str:
    return json.dumps(asdict(skip), ensure_ascii=False) + "\n"


def _of(skip: Skipped) -> str:
    example = f"example {skip.key!r}" if skip.key is not None else f"example number {skip.number}"
    return f"{skip.kind}: shard {skip.shard}, {example}: {skip.reason}"
