"""The micro-batches of an optimizer step, and the rows of examples that they read.

A step of R ranks that accumulate A batches has M = R x A micro-batches. The m-th of every step reads the
indices m, m + M, m + 2M, ... of what remains of the epoch, and rank r works on m = r, R + r, 2R + r, ... So a
step reads the same examples on any number of ranks. Two ranks that accumulate two batches of two examples:

    micro-batch   rank   step 0    step 1
    0             0      0  4       8 12
    1             1      1  5       9 13
    2             0      2  6      10 14
    3             1      3  7      11 15

Stopped behind step 0 and divided anew, over three ranks say, the indices from 8 on remain (`Remaining`); with
packing, also those that a micro-batch has read and not yet put into a row (`MicroBatchState.waiting`).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from v1lit.data.config import PackingConfig
from v1lit.data.example import ExampleRef
from v1lit.data.lengths.length import Length
from v1lit.data.sampling.mixture import GlobalSequence
from v1lit.data.sampling.packing import Packer
from v1lit.data.sampling.remaining import MicroBatchState, Remaining

LOOKED_UP_AT_ONCE = 64
"""Examples whose place is looked up together, which costs as much as for one."""


@dataclass(frozen=True)
class Refusal:
    """An example that fits no row, and why."""

    ref: ExampleRef
    reason: str


@dataclass(frozen=True)
class MicroBatchPlan:
    """The examples of one batch, and how far its micro-batch has come with it."""

    refs: tuple[ExampleRef, ...]
    after: MicroBatchState
    refused: tuple[Refusal, ...] = ()
    left_out: int = 0
    """Examples that the map has left out while the row was chosen."""


Measure = Callable[[ExampleRef], Length | None]
"""How long an example is; None where the map leaves it out."""


class Indexed(Protocol):
    """Examples by their index in what one micro-batch, of several, reads in an epoch."""

    @property
    def epoch(self) -> int: ...

    @property
    def micro_batch(self) -> int:
        """Which micro-batch it is."""

    @property
    def micro_batches(self) -> int: ...

    @property
    def length(self) -> int | None:
        """Indices of all micro-batches together; None while that is not known."""

    def indices(self, read: int, count: int) -> list[int]:
        """Up to `count` indices after the first `read` ones; fewer or none at the end, if it is known."""

    def find(self, indices: list[int]) -> list[ExampleRef | None]:
        """The example at every index; None where there is none."""


def share(micro_batch: int, micro_batches: int, length: int | None, read: int, count: int) -> list[int]:
    """Indices that one of so many micro-batches reads of `length` (None: not known): `count` after `read`."""
    first = micro_batch + micro_batches * read
    if length is not None:
        count = min(count, max(0, -((first - length) // micro_batches)))
    return [first + micro_batches * step for step in range(count)]


@dataclass(frozen=True)
class Substream:
    """The indices of the remaining sequence that one of `micro_batches` micro-batches reads, in one epoch."""

    sequence: GlobalSequence
    epoch: int
    remaining: Remaining
    micro_batch: int
    micro_batches: int

    @property
    def length(self) -> int | None:
        """Indices of all micro-batches together; None while that is not known (no index)."""
        total = self.sequence.positions
        return None if total is None else self.remaining.length(total)

    def indices(self, read: int, count: int) -> list[int]:
        """Up to `count` indices after the first `read` ones; fewer or none at the end, if it is known."""
        return share(self.micro_batch, self.micro_batches, self.length, read, count)

    def find(self, indices: list[int]) -> list[ExampleRef | None]:
        """The example at every index; None where its position is empty."""
        if not indices:
            return []
        positions = self.remaining.positions(np.array(indices, dtype=np.int64))
        found = self.sequence.find(self.epoch, positions)
        table = zip(positions, found.sources, found.shards, found.numbers, strict=True)
        return [
            ExampleRef(int(at), int(source), int(shard), int(number), self.epoch) if shard >= 0 else None
            for at, source, shard, number in table
        ]


def counted_rows(stream: Indexed, state: MicroBatchState, size: int) -> Iterator[MicroBatchPlan]:
    """Rows of `size` examples; all micro-batches have equally many, the last ones may be smaller or empty."""
    read = state.read
    while stream.length is None or read * stream.micro_batches < stream.length:
        refs = stream.find(stream.indices(read, size))
        if stream.length is not None and read * stream.micro_batches >= stream.length:
            return  # the end was found by reading
        read += size
        yield MicroBatchPlan(tuple(ref for ref in refs if ref is not None), MicroBatchState(read))


def filled_rows(
    stream: Indexed, state: MicroBatchState, packing: PackingConfig, measure: Measure
) -> Iterator[MicroBatchPlan]:
    """Rows filled to `packing.length` tokens; see `Packer`."""
    packer: Packer[tuple[int, ExampleRef]] = Packer(packing)
    waited = zip(state.waiting, stream.find(list(state.waiting)), strict=True)
    again = deque((index, ref) for index, ref in waited if ref is not None)
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
        after = MicroBatchState(ahead.read, tuple(index for index, _ in packer.items))
        yield MicroBatchPlan(tuple(ref for _, ref in chosen), after, tuple(refused), left_out)


def similar_rows(
    stream: Indexed, state: MicroBatchState, size: int, ahead: int, measure: Measure, seed: int
) -> Iterator[MicroBatchPlan]:
    """Rows of `size` examples of similar length: sorted within `ahead` rows, which come in random order."""
    read, waiting = state.read, list(state.waiting)
    while True:
        if not waiting:
            indices = stream.indices(read, size * ahead)
            waiting = _by_length(
                stream, indices, size, measure, f"{seed} {stream.epoch} {stream.micro_batch} {read}"
            )
            read += len(indices)
            if not waiting:
                return
        row, waiting = waiting[:size], waiting[size:]
        refs = stream.find(row)
        yield MicroBatchPlan(
            tuple(ref for ref in refs if ref is not None), MicroBatchState(read, tuple(waiting))
        )


def _by_length(stream: Indexed, indices: list[int], size: int, measure: Measure, seed: str) -> list[int]:
    """The indices that hold an example, so that `size` consecutive ones are of similar length.

    Those that the map leaves out are spread over them: a batch of nothing else would be a step for nothing.
    """
    found = zip(indices, stream.find(indices), strict=True)
    lengths = {index: measure(ref) for index, ref in found if ref is not None}
    kept = sorted((length.tokens, index) for index, length in lengths.items() if length is not None)
    empty = [index for index, length in lengths.items() if length is None]
    spread = [
        (kept[number * len(kept) // len(empty)][0] if kept else 0, index)
        for number, index in enumerate(empty)
    ]
    ordered = [index for _, index in sorted([*kept, *spread])]
    short, remaining = ordered[: len(ordered) % size], ordered[len(ordered) % size :]
    rows = [remaining[start : start + size] for start in range(0, len(remaining), size)]
    random.Random(seed).shuffle(rows)
    return [*(index for row in rows for index in row), *short]


class _ReadAhead:
    """Reads a substream one example at a time, and looks them up many at a time."""

    def __init__(self, stream: Indexed, read: int) -> None:
        self.stream, self.read = stream, read
        self._found: deque[tuple[int, ExampleRef | None]] = deque()

    def next(self) -> tuple[int, ExampleRef] | None:
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
            index, ref = self._found.popleft()
            self.read += 1
            if ref is not None:
                return index, ref
