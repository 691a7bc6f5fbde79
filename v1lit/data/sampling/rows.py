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
"""Examples that are looked up together, which costs as much as for one."""


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


class MicroBatchStream(Protocol):
    """Examples by their index in what all micro-batches read in an epoch, of which one reads its share."""

    @property
    def epoch(self) -> int: ...

    @property
    def micro_batch(self) -> int:
        """The micro-batch that reads."""

    @property
    def micro_batches(self) -> int: ...

    @property
    def length(self) -> int | None:
        """Indices of all micro-batches together; None while that is not known."""

    def find(self, indices: list[int]) -> list[ExampleRef | None]:
        """The example at every index; None where there is none."""


def own_indices(stream: MicroBatchStream, read: int, count: int) -> list[int]:
    """Up to `count` indices of the stream's micro-batch, after the first `read` ones.

    They are fewer or none at the end, where that is known.
    """
    first = stream.micro_batch + stream.micro_batches * read
    if stream.length is not None:
        count = min(count, max(0, -((first - stream.length) // stream.micro_batches)))
    return [first + stream.micro_batches * step for step in range(count)]


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
        epoch_length = self.sequence.length
        return None if epoch_length is None else self.remaining.length(epoch_length)

    def find(self, indices: list[int]) -> list[ExampleRef | None]:
        """The example at every index; None where its epoch index is empty."""
        if not indices:
            return []
        epoch_indices = self.remaining.epoch_indices(np.array(indices, dtype=np.int64))
        refs = self.sequence.find(self.epoch, epoch_indices)
        columns = (column.tolist() for column in (epoch_indices, refs.sources, refs.shards, refs.indices))
        return [
            ExampleRef(epoch_index, source, shard, index, self.epoch) if shard >= 0 else None
            for epoch_index, source, shard, index in zip(*columns, strict=True)
        ]


def counted_rows(stream: MicroBatchStream, state: MicroBatchState, size: int) -> Iterator[MicroBatchPlan]:
    """Rows of `size` examples, as many for each micro-batch; the last ones may be smaller or empty."""
    read = state.read
    while stream.length is None or read * stream.micro_batches < stream.length:
        refs = stream.find(own_indices(stream, read, size))
        if stream.length is not None and read * stream.micro_batches >= stream.length:
            return  # reading has come to the end
        read += size
        yield MicroBatchPlan(tuple(ref for ref in refs if ref is not None), MicroBatchState(read))


def filled_rows(
    stream: MicroBatchStream, state: MicroBatchState, packing: PackingConfig, measure: Measure
) -> Iterator[MicroBatchPlan]:
    """Rows filled to `packing.length` tokens, as `Packer` chooses them."""
    packer: Packer[tuple[int, ExampleRef]] = Packer(packing)
    waiting = zip(state.waiting, stream.find(list(state.waiting)), strict=True)
    read, first = state.read, deque((state.read, index, ref) for index, ref in waiting)
    ahead = _one_by_one(stream, state.read)
    while True:
        refused, left_out = [], 0
        while first or packer.hungry:
            item = first.popleft() if first else next(ahead, None)
            if item is None:
                break
            read, index, ref = item
            if ref is None:
                continue
            length = measure(ref)
            if length is None:
                left_out += 1
            elif problem := packer.problem(length):
                refused.append(Refusal(ref, problem))
            else:
                packer.add((index, ref), length)
        chosen = packer.row() if packer.waiting else []
        if not (chosen or refused or left_out):
            return
        after = MicroBatchState(read, tuple(index for index, _ in packer.items))
        yield MicroBatchPlan(tuple(ref for _, ref in chosen), after, tuple(refused), left_out)


def similar_rows(
    stream: MicroBatchStream, state: MicroBatchState, size: int, ahead: int, measure: Measure, seed: int
) -> Iterator[MicroBatchPlan]:
    """Rows of `size` examples of similar length: sorted within `ahead` rows, which come in random order.

    The order is the same for all micro-batches, so those of a step have rows of much the same length: a rank
    with short ones would wait for one with long ones.
    """
    read, waiting = state.read, list(state.waiting)
    while True:
        if not waiting:
            indices = own_indices(stream, read, size * ahead)
            waiting = _by_length(stream, indices, size, measure, f"{seed} {stream.epoch} {read}")
            read += len(indices)
            if not waiting:
                return
        row, waiting = waiting[:size], waiting[size:]
        refs = stream.find(row)
        yield MicroBatchPlan(
            tuple(ref for ref in refs if ref is not None), MicroBatchState(read, tuple(waiting))
        )


def _by_length(
    stream: MicroBatchStream, indices: list[int], size: int, measure: Measure, seed: str
) -> list[int]:
    """The indices that hold an example, so that `size` consecutive ones are of similar length.

    Those that the map leaves out are spread over them: a batch of nothing else would be a step for nothing.
    """
    refs = zip(indices, stream.find(indices), strict=True)
    lengths = {index: measure(ref) for index, ref in refs if ref is not None}
    kept = sorted((length.tokens, index) for index, length in lengths.items() if length is not None)
    empty = [index for index, length in lengths.items() if length is None]
    spread = [
        (kept[place * len(kept) // len(empty)][0] if kept else 0, index) for place, index in enumerate(empty)
    ]
    ordered = [index for _, index in sorted([*kept, *spread])]
    short, remaining = ordered[: len(ordered) % size], ordered[len(ordered) % size :]
    rows = [remaining[start : start + size] for start in range(0, len(remaining), size)]
    random.Random(seed).shuffle(rows)
    return [*(index for row in rows for index in row), *short]


def _one_by_one(stream: MicroBatchStream, read: int) -> Iterator[tuple[int, int, ExampleRef | None]]:
    """How many indices have been read, the last of them and its example; looked up many at a time."""
    while indices := own_indices(stream, read, LOOKED_UP_AT_ONCE):
        refs = stream.find(indices)
        # Reading may have come to the end, behind which there is nothing.
        within = own_indices(stream, read, LOOKED_UP_AT_ONCE)
        for index, ref in zip(within, refs, strict=False):
            read += 1
            yield read, index, ref
