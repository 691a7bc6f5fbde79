"""`StreamExamples`: what one reader reads of an epoch, by numbers, although it comes from front to back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from v1lit.data.errors import ShardError
from v1lit.data.example import Example, ExampleRef
from v1lit.data.remote import Retry
from v1lit.data.sampling.remaining import MicroBatchState
from v1lit.data.sampling.rows import strided_indices
from v1lit.data.shards.examples import Opened
from v1lit.data.streams.bytes import name_of
from v1lit.data.streams.members import Members
from v1lit.data.streams.reader_state import Begin, ReaderState
from v1lit.data.streams.samples import Sample, read_samples

T = TypeVar("T")
MAX_WINDOW_BYTES = 2**28
"""A window ends where it holds so much, however few examples that are."""


@dataclass(frozen=True)
class StreamFiles:
    """The files of a stream, and how their samples become examples."""

    files: Sequence[str]
    members: Members | None
    retry: Retry
    shuffle: int = 0
    """Examples that are mixed at a time; 0 for the order in which they come."""
    seed: int = 0

    @property
    def names(self) -> str:
        """Hexadecimal digits that change when the names of the files do."""
        return hashlib.sha256("\n".join(self.files).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Read:
    """One sample, or what is wrong in its place."""

    file: int
    number: int
    content: Sample | ShardError

    @property
    def size(self) -> int:
        return self.content.size if isinstance(self.content, Sample) else 0


class StreamExamples:
    """The examples of some files, in windows that are permuted; a `MicroBatchStream`, and `Readable`.

    Example n of the reader has index n. Going to a later one reads what lies before it, and keeps it until
    `forget`. A window is the next `shuffle` examples, so it is the same wherever reading begins with it: the
    state of a reader is where the window of its oldest open example begins.

    Args:
        stream: the files.
        part: which of them to read, from which samples on.
        state: how far that has come.
        epoch: in which it is read.
        micro_batch, micro_batches: keep every `micro_batches`-th example only, from this one on; all the same
            are read.
        limit: read so many examples at most.
    """

    def __init__(
        self,
        stream: StreamFiles,
        part: Sequence[Begin],
        state: ReaderState,
        epoch: int,
        *,
        micro_batch: int = 0,
        micro_batches: int = 1,
        limit: int | None = None,
    ) -> None:
        self.stream, self.part, self.epoch = stream, part, epoch
        self.micro_batch, self.micro_batches, self.limit = micro_batch, micro_batches, limit
        self._next = state.first
        self._from, self._waiting = state.read, set(state.waiting)
        self._starts = [(state.first, Begin(state.file, state.sample))]
        self._order = self._in_order(self._starts[0][1])
        self._kept: dict[int, _Read] = {}
        self._index: dict[tuple[int, int], int] = {}
        self.length: int | None = None

    # ------------------------------------------------------------------ by index

    def indices(self, read: int, count: int) -> list[int]:
        return strided_indices(self.micro_batch, self.micro_batches, self.length, read, count)

    def find(self, indices: list[int]) -> list[ExampleRef | None]:
        """Raises ShardError where a file cannot be opened or fetched, or a command fails."""
        while indices and self._next <= max(indices) and self.length is None:
            self._read_one()
        found = [self._kept.get(index) for index in indices]
        return [
            None if one is None else ExampleRef(one.number, 0, one.file, one.number, self.epoch)
            for one in found
        ]

    def after(self, state: MicroBatchState) -> ReaderState:
        """State of the reader when rows have come so far. Forgets what lies before."""
        unread = self.micro_batch + self.micro_batches * state.read
        oldest = min([unread, *state.waiting])
        while len(self._starts) > 1 and self._starts[1][0] <= oldest:
            self._starts.pop(0)
        waiting = set(state.waiting)
        done = [index for index in self._kept if index < unread and index not in waiting]
        for index in done:
            one = self._kept.pop(index)
            del self._index[one.file, one.number]
        first, begin = self._starts[0]
        return ReaderState(begin.file, begin.sample, first, state.read, state.waiting)

    # ------------------------------------------------------------------ by reference

    def use(self, ref: ExampleRef, action: Callable[[Opened], T]) -> T:
        return action(_One(self.file(ref), self._content(ref), self.stream.members))

    def read(self, ref: ExampleRef) -> Example:
        return self.use(ref, lambda opened: opened.example(ref.index))

    def key(self, ref: ExampleRef) -> str | None:
        content = self._content(ref)
        return content.key

    def file(self, ref: ExampleRef) -> str:
        return name_of(self.stream.files[ref.shard])

    def _content(self, ref: ExampleRef) -> Sample | ShardError:
        return self._kept[self._index[ref.shard, ref.index]].content

    # ------------------------------------------------------------------ reading on

    def _read_one(self) -> None:
        """Take the next example; at the end, the length is known."""
        one = next(self._order, None) if self.limit is None or self._next < self.limit else None
        if one is None:
            self.length = self._next
            return
        index, self._next = self._next, self._next + 1
        if (index >= self._from or index in self._waiting) and index % self.micro_batches == self.micro_batch:
            self._kept[index] = one
            self._index[one.file, one.number] = index

    def _in_order(self, begin: Begin) -> Iterator[_Read]:
        """The examples as they are given out."""
        samples = self._samples(begin)
        if not self.stream.shuffle:
            for one, behind in samples:
                self._starts.append((self._next + 1, behind))
                yield one
            return
        window: list[_Read] = []
        size = 0
        for one, behind in samples:
            window.append(one)
            size += one.size
            if len(window) >= self.stream.shuffle or size >= MAX_WINDOW_BYTES:
                self._starts.append((self._next + len(window), behind))
                yield from self._permuted(window)
                window, size = [], 0
        yield from self._permuted(window)

    def _permuted(self, window: list[_Read]) -> Iterator[_Read]:
        if window:
            first = window[0]
            random = np.random.default_rng([self.stream.seed, self.epoch, first.file, first.number])
            yield from (window[number] for number in random.permutation(len(window)))

    def _samples(self, begin: Begin) -> Iterator[tuple[_Read, Begin]]:
        """The samples as they come, each with the place behind it."""
        for at in range(begin.file, len(self.part)):
            file, skip = self.part[at]
            if at == begin.file:
                skip = max(skip, begin.sample)
            for number, content in enumerate(read_samples(self.stream.files[file], self.stream.retry)):
                if number >= skip:
                    yield _Read(file, number, content), Begin(at, number + 1)


@dataclass(frozen=True)
class _One:
    """One sample as an open shard."""

    name: str
    content: Sample | ShardError
    members: Members | None

    def example(self, number: int) -> Example:
        if isinstance(self.content, ShardError):
            raise self.content
        return self.content.example(self.members)


@dataclass(frozen=True)
class Readers:
    """What the readers of a rank read of an epoch; sent to the workers."""

    stream: StreamFiles
    parts: Sequence[Sequence[Begin]]
    """The files of each."""
    states: Sequence[ReaderState]
    """How far each has come."""
    epoch: int
    micro_batch: int = 0
    micro_batches: int = 1
    limit: int | None = None

    def examples(self, reader: int) -> StreamExamples:
        """The examples of one of them, from where it has come to."""
        return StreamExamples(
            self.stream,
            self.parts[reader],
            self.states[reader],
            self.epoch,
            micro_batch=self.micro_batch,
            micro_batches=self.micro_batches,
            limit=self.limit,
        )
