"""Slots: one batch each of an optimizer step, and the rows of examples that they read.

A step of R ranks that accumulate A batches has R x A slots, whoever works on them: rank r takes the slots
r, R + r, 2R + r, ... So the same step reads the same examples on any number of ranks.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from v1lit.data.config import PackingConfig
from v1lit.data.example import Place
from v1lit.data.lengths.length import Length
from v1lit.data.sampling.mixture import GlobalSequence
from v1lit.data.sampling.packing import Packer
from v1lit.data.sampling.remaining import Rest, SlotState

LOOKED_UP_AT_ONCE = 64
"""Examples whose place is looked up together, which costs as much as for one."""


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
    left_out: int = 0
    """Examples that the map has left out while the row was chosen."""


Measure = Callable[[Place], Length | None]
"""How long an example is; None where the map leaves it out."""


class Indexed(Protocol):
    """Examples by their index in what one slot, of several, reads in an epoch."""

    @property
    def epoch(self) -> int: ...

    @property
    def number(self) -> int:
        """Which slot it is."""

    @property
    def slots(self) -> int: ...

    @property
    def length(self) -> int | None:
        """Indices of all slots together; None while that is not known."""

    def indices(self, read: int, count: int) -> list[int]:
        """Up to `count` indices after the first `read` ones; fewer or none at the end, if it is known."""

    def find(self, indices: list[int]) -> list[Place | None]:
        """The example at every index; None where there is none."""


def share(slot: int, slots: int, length: int | None, read: int, count: int) -> list[int]:
    """Indices that one of `slots` slots reads of `length` ones (None: not known): `count` after `read`."""
    first = slot + slots * read
    if length is not None:
        count = min(count, max(0, -((first - length) // slots)))
    return [first + slots * step for step in range(count)]


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
        return share(self.number, self.slots, self.length, read, count)

    def find(self, indices: list[int]) -> list[Place | None]:
        """The example at every index; None where its position is empty."""
        if not indices:
            return []
        positions = self.rest.positions(np.array(indices, dtype=np.int64))
        found = self.sequence.find(self.epoch, positions)
        table = zip(positions, found.sources, found.shards, found.numbers, strict=True)
        return [
            Place(int(at), int(source), int(shard), int(number), self.epoch) if shard >= 0 else None
            for at, source, shard, number in table
        ]


def counted_rows(stream: Indexed, state: SlotState, size: int) -> Iterator[Row]:
    """Rows of `size` examples; all slots have equally many, the last ones may be smaller or empty."""
    read = state.read
    while stream.length is None or read * stream.slots < stream.length:
        places = stream.find(stream.indices(read, size))
        if stream.length is not None and read * stream.slots >= stream.length:
            return  # the end was found by reading
        read += size
        yield Row(tuple(place for place in places if place is not None), SlotState(read))


def filled_rows(stream: Indexed, state: SlotState, packing: PackingConfig, measure: Measure) -> Iterator[Row]:
    """Rows filled to `packing.length` tokens; see `Packer`."""
    packer: Packer[tuple[int, Place]] = Packer(packing)
    waited = zip(state.waiting, stream.find(list(state.waiting)), strict=True)
    again = deque((index, place) for index, place in waited if place is not None)
    ahead = _ReadAhead(stream, state.read)
    while True:
        refused, left_out = [], 0
        while again or packer.hungry:
            one = again.popleft() if again else ahead.next()
            if one is None:
                break
            length = measure(one[1])
            if length is None:
                left_out += 1
            elif problem := packer.problem(length):
                refused.append(Refusal(one[1], problem))
            else:
                packer.add(one, length)
        chosen = packer.row() if packer.waiting else []
        if not (chosen or refused or left_out):
            return
        after = SlotState(ahead.read, tuple(index for index, _ in packer.items))
        yield Row(tuple(place for _, place in chosen), after, tuple(refused), left_out)


def similar_rows(
    stream: Indexed, state: SlotState, size: int, ahead: int, measure: Measure, seed: int
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


def _by_length(stream: Indexed, indices: list[int], size: int, measure: Measure, seed: str) -> list[int]:
    """The indices that hold an example, so that `size` consecutive ones are of similar length.

    Those that the map leaves out are spread over them: a batch of nothing else would be a step for nothing.
    """
    found = zip(indices, stream.find(indices), strict=True)
    lengths = {index: measure(place) for index, place in found if place is not None}
    kept = sorted((length.tokens, index) for index, length in lengths.items() if length is not None)
    empty = [index for index, length in lengths.items() if length is None]
    spread = [
        (kept[number * len(kept) // len(empty)][0] if kept else 0, index)
        for number, index in enumerate(empty)
    ]
    ordered = [index for _, index in sorted([*kept, *spread])]
    short, rest = ordered[: len(ordered) % size], ordered[len(ordered) % size :]
    rows = [rest[start : start + size] for start in range(0, len(rest), size)]
    random.Random(seed).shuffle(rows)
    return [*(index for row in rows for index in row), *short]


class _ReadAhead:
    """Reads a substream one example at a time, and looks them up many at a time."""

    def __init__(self, stream: Indexed, read: int) -> None:
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
