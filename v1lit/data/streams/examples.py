"""`StreamExamples`: what one reader reads of an epoch, by index, although it comes from front to back."""

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
from v1lit.data.shards.examples import OpenShard
from v1lit.data.streams.members import Members
from v1lit.data.streams.reader_state import FileStart, ReaderState
from v1lit.data.streams.samples import Sample, read_samples
from v1lit.data.streams.tar_bytes import name_of

T = TypeVar("T")
Content = Sample | ShardError
"""A sample, or what is wrong in its place."""
MAX_WINDOW_BYTES = 2**28
"""A window ends where it holds that much, however few examples it has."""


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
class Readers:
    """What the readers of a rank read of an epoch; sent to the workers."""

    stream: StreamFiles
    parts: Sequence[Sequence[FileStart]]
    """Which files each reader reads, from which samples on."""
    states: Sequence[ReaderState]
    """How far each reader has come."""
    epoch: int
    micro_batch: int = 0
    """Every `micro_batches`-th example only is kept, from this one on; all are read alike."""
    micro_batches: int = 1
    limit: int | None = None
    """Examples that each reader reads at most."""


class StreamExamples:
    """The examples of some files, in windows that are permuted; a `MicroBatchStream`, and `Readable`.

    Example n of the reader has index n. Going to a later one reads what lies before it, and keeps it until
    `after`. A window is the next `shuffle` examples, so it is the same wherever reading begins with it: the
    state of a reader is where the window of its oldest open example begins.

    Args:
        readers: the readers of a rank.
        reader: which of them this is.
    """

    def __init__(self, readers: Readers, reader: int) -> None:
        self.stream, self.epoch, self.limit = readers.stream, readers.epoch, readers.limit
        self.micro_batch, self.micro_batches = readers.micro_batch, readers.micro_batches
        self.part, state = readers.parts[reader], readers.states[reader]
        self._next = state.first
        self._from, self._waiting = state.read, set(state.waiting)
        self._starts = [(state.first, FileStart(state.file, state.sample))]
        self._order = self._in_order(self._starts[0][1])
        self._kept: dict[int, ExampleRef] = {}
        self._contents: dict[ExampleRef, Content] = {}
        self.length: int | None = None

    # ------------------------------------------------------------------ by index

    def find(self, indices: list[int]) -> list[ExampleRef | None]:
        """The example at every index; None behind the end, or where it was forgotten.

        Raises ShardError where a file cannot be opened or fetched, or a command fails.
        """
        while indices and self._next <= max(indices) and self.length is None:
            self._read_next()
        return [self._kept.get(index) for index in indices]

    def after(self, state: MicroBatchState) -> ReaderState:
        """State of the reader when its rows have come as far as `state`. Forgets what lies before."""
        unread = self.micro_batch + self.micro_batches * state.read
        oldest = min([unread, *state.waiting])
        while len(self._starts) > 1 and self._starts[1][0] <= oldest:
            self._starts.pop(0)
        waiting = set(state.waiting)
        done = [index for index in self._kept if index < unread and index not in waiting]
        for index in done:
            del self._contents[self._kept.pop(index)]
        first, start = self._starts[0]
        return ReaderState(start.file, start.sample, first, state.read, state.waiting)

    # ------------------------------------------------------------------ by reference

    def use(self, ref: ExampleRef, action: Callable[[OpenShard], T]) -> T:
        """What an action does with an example that is kept."""
        return action(_SampleShard(self.file(ref), self._contents[ref], self.stream.members))

    def key(self, ref: ExampleRef) -> str | None:
        """Name of an example, as far as it can be read."""
        return self._contents[ref].key

    def file(self, ref: ExampleRef) -> str:
        """What messages call the file that an example is in."""
        return name_of(self.stream.files[ref.shard])

    # ------------------------------------------------------------------ reading further

    def _read_next(self) -> None:
        """Take the next example; at the end, the length is known."""
        item = next(self._order, None) if self.limit is None or self._next < self.limit else None
        if item is None:
            self.length = self._next
            return
        index, self._next = self._next, self._next + 1
        if (index >= self._from or index in self._waiting) and index % self.micro_batches == self.micro_batch:
            self._kept[index], self._contents[item[0]] = item

    def _in_order(self, start: FileStart) -> Iterator[tuple[ExampleRef, Content]]:
        """The examples in the order of their indices."""
        window: list[tuple[ExampleRef, Content]] = []
        size = 0
        for ref, content, behind in self._samples(start):
            window.append((ref, content))
            size += content.size if isinstance(content, Sample) else 0
            if len(window) >= self.stream.shuffle or size >= MAX_WINDOW_BYTES:
                self._starts.append((self._next + len(window), behind))
                yield from self._permuted(window)
                window, size = [], 0
        yield from self._permuted(window)

    def _permuted(self, window: list[tuple[ExampleRef, Content]]) -> Iterator[tuple[ExampleRef, Content]]:
        if window:
            first = window[0][0]
            random = np.random.default_rng([self.stream.seed, self.epoch, first.shard, first.index])
            yield from (window[place] for place in random.permutation(len(window)))

    def _samples(self, start: FileStart) -> Iterator[tuple[ExampleRef, Content, FileStart]]:
        """The samples as they come, each with the place behind it."""
        for at in range(start.file, len(self.part)):
            file, skip = self.part[at]
            if at == start.file:
                skip = max(skip, start.sample)
            for index, content in enumerate(read_samples(self.stream.files[file], self.stream.retry)):
                if index >= skip:
                    ref = ExampleRef(index, 0, file, index, self.epoch)
                    yield ref, content, FileStart(at, index + 1)


@dataclass(frozen=True)
class _SampleShard:
    """One sample as an open shard."""

    name: str
    content: Content
    members: Members | None

    def example(self, index: int) -> Example:
        if isinstance(self.content, ShardError):
            raise self.content
        return self.content.example(self.members)
