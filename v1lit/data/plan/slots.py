"""Slots: one batch each of an optimizer step, and the rows of examples that they read.

A step of R ranks that accumulate A batches has R x A slots, whoever works on them: rank r takes the slots
r, R + r, 2R + r, ... So the same step reads the same examples on any number of ranks.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from v1lit.data.config import PackingConfig
from v1lit.data.lengths import Length
from v1lit.data.packing import Packer
from v1lit.data.plan.mixture import GlobalSequence
from v1lit.data.plan.rest import Rest, SlotState

LOOKED_UP_AT_ONCE = 64
"""Examples whose place is looked up together, which costs as much as for one."""


@dataclass(frozen=True)
class Place:
    """One example: its position in the epoch, and where it lies."""

    position: int
    source: int
    shard: int
    number: int
    """Within its shard."""


@dataclass(frozen=True)
class Refusal:
    """An example that fits no row, and why."""

    place: Place
    reason: str


@dataclass(frozen=True)
class Row:
    """The examples of one batch, and how far its slot has come with it."""

    places: tuple[Place, ...]
    after: SlotState
    refused: tuple[Refusal, ...] = ()


Measure = Callable[[Place], Length]


@dataclass(frozen=True)
class Substream:
    """The indices of the remaining sequence that one of `slots` slots reads, in one epoch."""

    sequence: GlobalSequence
    epoch: int
    rest: Rest
    number: int
    slots: int

    @property
    def length(self) -> int | None:
        """Indices of all slots together; None while that is not known (no index)."""
        total = self.sequence.positions
        return None if total is None else self.rest.length(total)

    def indices(self, read: int, count: int) -> list[int]:
        """Up to `count` indices after the first `read` ones; fewer or none at the end, if it is known."""
        first = self.number + self.slots * read
        if self.length is not None:
            count = min(count, max(0, -((first - self.length) // self.slots)))
        return [first + self.slots * step for step in range(count)]

    def find(self, indices: list[int]) -> list[Place | None]:
        """The example at every index; None where its position is empty."""
        if not indices:
            return []
        positions = self.rest.positions(np.array(indices, dtype=np.int64))
        found = self.sequence.find(self.epoch, positions)
        table = zip(positions, found.sources, found.shards, found.numbers, strict=True)
        return [Place(*map(int, one)) if one[2] >= 0 else None for one in table]


def counted_rows(stream: Substream, state: SlotState, size: int) -> Iterator[Row]:
    """Rows of `size` examples; all slots have equally many, the last ones may be smaller or empty."""
    read = state.read
    while stream.length is None or read * stream.slots < stream.length:
        places = stream.find(stream.indices(read, size))
        if stream.length is not None and read * stream.slots >= stream.length:
            return  # the end was found by reading
        read += size
        yield Row(tuple(place for place in places if place is not None), SlotState(read))


def filled_rows(
    stream: Substream, state: SlotState, packing: PackingConfig, measure: Measure
) -> Iterator[Row]:
    """Rows filled to `packing.length` tokens; see `Packer`."""
    packer: Packer[tuple[int, Place]] = Packer(packing)
    for index, place in zip(state.waiting, stream.find(list(state.waiting)), strict=True):
        if place is not None:
            packer.add((index, place), measure(place))
    ahead = _ReadAhead(stream, state.read)
    while True:
        refused = []
        while packer.hungry and (one := ahead.next()) is not None:
            length = measure(one[1])
            if problem := packer.problem(length):
                refused.append(Refusal(one[1], problem))
            else:
                packer.add(one, length)
        chosen = packer.row() if packer.waiting else []
        if not chosen and not refused:
            return
        waiting = tuple(index for index, _ in packer.items)
        yield Row(tuple(place for _, place in chosen), SlotState(ahead.read, waiting), tuple(refused))


def similar_rows(
    stream: Substream, state: SlotState, size: int, ahead: int, measure: Measure, seed: int
) -> Iterator[Row]:
    """Rows of `size` examples of similar length: sorted within `ahead` rows, which come in random order."""
    read, waiting = state.read, list(state.waiting)
    while True:
        if not waiting:
            indices = stream.indices(read, size * ahead)
            waiting = _by_length(
                stream, indices, size, measure, f"{seed} {stream.epoch} {stream.number} {read}"
            )
            read += len(indices)
            if not waiting:
                return
        row, waiting = waiting[:size], waiting[size:]
        places = stream.find(row)
        yield Row(tuple(place for place in places if place is not None), SlotState(read, tuple(waiting)))


def _by_length(stream: Substream, indices: list[int], size: int, measure: Measure, seed: str) -> list[int]:
    """The indices that hold an example, so that `size` consecutive ones are of similar length."""
    measured = [
        (measure(place).tokens, index)
        for index, place in zip(indices, stream.find(indices), strict=True)
        if place is not None
    ]
    ordered = [index for _, index in sorted(measured)]
    short, rest = ordered[: len(ordered) % size], ordered[len(ordered) % size :]
    rows = [rest[start : start + size] for start in range(0, len(rest), size)]
    random.Random(seed).shuffle(rows)
    return [*(index for row in rows for index in row), *short]


class _ReadAhead:
    """Reads a substream one example at a time, and looks them up many at a time."""

    def __init__(self, stream: Substream, read: int) -> None:
        self.stream, self.read = stream, read
        self._found: deque[tuple[int, Place | None]] = deque()

    def next(self) -> tuple[int, Place] | None:
        """The next example and its index, None at the end."""
        while True:
            if not self._found:
                indices = self.stream.indices(self.read, LOOKED_UP_AT_ONCE)
                self._found.extend(zip(indices, self.stream.find(indices), strict=True))
                # Reading may have found the end, behind which there is nothing.
                within = len(self.stream.indices(self.read, LOOKED_UP_AT_ONCE))
                while len(self._found) > within:
                    self._found.pop()
                if not self._found:
                    return None
            index, place = self._found.popleft()
            self.read += 1
            if place is not None:
                return index, place
