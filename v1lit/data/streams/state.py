"""How far the readers of a stream have come, and what of it a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from v1lit.data.encode.batch import ReadPosition
from v1lit.data.loading.ranks import Ranks
from v1lit.data.streams.reader_state import FileStart, RankState, ReaderState


class StreamLayout(NamedTuple):
    """How an epoch is divided: a run resumes exactly with the same layout only."""

    ranks: int
    workers: int
    rows: str
    """Which examples make a row, in words."""

    @property
    def readers(self) -> int:
        """Workers of all ranks; of R of them, reader `rank + ranks * worker` has every R-th file."""
        return self.ranks * self.workers


@dataclass(frozen=True)
class StreamProgress:
    """How far an epoch has been read by all ranks together, at the end of an optimizer step."""

    epoch: int = 0
    steps: int = 0
    layout: StreamLayout | None = None
    files: tuple[FileStart, ...] = ()
    """What was left of the epoch when it was divided as it is now, in its order."""
    ranks: tuple[RankState, ...] = ()
    """State of every rank; none before the first step of the layout."""
    before: int = 0
    """Examples that were read before it was divided as it is now."""

    def part(self, reader: int) -> tuple[FileStart, ...]:
        """The files of one reader."""
        assert self.layout is not None
        return self.files[reader :: self.layout.readers]

    def of_rank(self, rank: int) -> RankState:
        """State of one rank."""
        assert self.layout is not None
        return self.ranks[rank] if self.ranks else RankState(0, (ReaderState(),) * self.layout.workers)

    @property
    def examples_read(self) -> int:
        """Examples of the epoch that have been put into rows."""
        readers = [reader for rank in self.ranks for reader in rank.readers]
        return self.before + sum(reader.read - len(reader.waiting) for reader in readers)

    def divided(self, layout: StreamLayout) -> StreamProgress:
        """The same for another layout. What is left of the files is dealt out anew.

        A file that a reader is in is read again from where the oldest example of its window, or of those that
        wait for a row, lies: nothing is left out, a few examples come twice.
        """
        if layout == self.layout:
            return self
        left = self.files
        if self.layout is not None and self.ranks:
            unread: list[FileStart] = []
            for reader in range(self.layout.readers):
                state = self.ranks[reader % self.layout.ranks].readers[reader // self.layout.ranks]
                files = self.part(reader)[state.file :]
                unread += [FileStart(start.file, max(start.sample, state.sample)) for start in files[:1]]
                unread += files[1:]
            place = {start.file: place for place, start in enumerate(self.files)}
            left = tuple(sorted(unread, key=lambda start: place[start.file]))
        return replace(self, layout=layout, files=left, ranks=(), before=self.examples_read)


class StreamReading:
    """Follows the batches that training has used, as `ReadingState` does for shards with random access."""

    def __init__(self) -> None:
        self.begun = False
        """Whether training data have been asked for."""
        self._progress: StreamProgress | None = None
        self._resumed: StreamProgress | None = None
        self._own: RankState | None = None
        self._step: RankState | None = None

    def resume(self, state: Mapping[str, Any]) -> None:
        """Resume where a checkpoint's state was saved, at the next `begin`."""
        self._resumed, self._progress = stream_progress_of(state), None

    def begin(
        self, current_epoch: int, layout: StreamLayout, order: Callable[[int], Sequence[int]], rank: int
    ) -> StreamProgress:
        """Where the next epoch begins; `order` is that of its files. See `ReadingState.begin`."""
        resumed, self._resumed, self.begun = self._resumed, None, True
        if resumed is not None and resumed.epoch >= current_epoch and resumed.layout is not None:
            progress = resumed.divided(layout)
        else:
            epoch = current_epoch if resumed is None else max(current_epoch, resumed.epoch)
            progress = StreamProgress(epoch, layout=layout, files=tuple(map(FileStart, order(epoch))))
        self._progress = progress
        self._own = self._step = progress.of_rank(rank)
        return progress

    def used(self, read: ReadPosition, epoch_ends: bool) -> None:
        """Note that training has used a batch."""
        assert self._progress is not None
        if isinstance(read.after, RankState):
            self._step = read.after
        if epoch_ends:
            self._progress, self._own = StreamProgress(read.epoch + 1), None
        elif read.last:
            self._own = self._step
            self._progress = replace(self._progress, steps=self._progress.steps + 1)

    def of_all(self, ranks: Ranks) -> StreamProgress | None:
        """The progress with the state of every rank; to be called on all of them."""
        if self._progress is None:
            return self._resumed
        everyone = ranks.gather(self._own)
        if self._own is None or not self._progress.steps:
            return self._progress
        return replace(self._progress, ranks=tuple(everyone))

    def saved(self, ranks: Ranks) -> dict[str, Any]:
        """What a checkpoint keeps, empty where there is nothing yet; to be called on all ranks."""
        progress = self.of_all(ranks)
        return {} if progress is None else stream_to_dict(progress)


def stream_progress_of(state: Mapping[str, Any]) -> StreamProgress:
    """How far a checkpoint has come; that of shards was made between two epochs."""
    return stream_from_dict(state) if "readers" in state else StreamProgress(int(state["epoch"]))


def stream_to_dict(progress: StreamProgress) -> dict[str, Any]:
    """A progress as plain numbers, texts and tensors.

    `readers` int64: of every rank which of its readers is next; of each of them file, sample, first, read,
    how many wait, and those. `files` int64 `[files, 2]`.
    """
    readers: list[int] = []
    for rank in progress.ranks:
        readers.append(rank.next)
        for reader in rank.readers:
            readers += [*reader[:4], len(reader.waiting), *reader.waiting]
    return {
        "epoch": progress.epoch,
        "steps": progress.steps,
        "layout": [] if progress.layout is None else list(progress.layout),
        "files": torch.tensor(progress.files, dtype=torch.int64).reshape(-1, 2),
        "readers": torch.tensor(readers, dtype=torch.int64),
        "before": progress.before,
    }


def stream_from_dict(state: Mapping[str, Any]) -> StreamProgress:
    """The inverse of `stream_to_dict`."""
    layout = StreamLayout(*state["layout"]) if state["layout"] else None
    numbers, ranks = iter(state["readers"].tolist()), []
    for following in numbers:
        assert layout is not None
        readers = []
        for _ in range(layout.workers):
            file, sample, first, read, waiting = (next(numbers) for _ in range(5))
            readers.append(
                ReaderState(file, sample, first, read, tuple(next(numbers) for _ in range(waiting)))
            )
        ranks.append(RankState(following, tuple(readers)))
    return StreamProgress(
        epoch=int(state["epoch"]),
        steps=int(state["steps"]),
        layout=layout,
        files=tuple(FileStart(*start) for start in state["files"].tolist()),
        ranks=tuple(ranks),
        before=int(state["before"]),
    )
