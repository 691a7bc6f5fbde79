"""`ShardDataset`: the examples of a folder of shards, split over ranks and DataLoader workers."""

from __future__ import annotations

import glob
import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from v1lit.data.example import Example
from v1lit.data.shards import INDEX_NAME, Shard, ShardError, list_shards

log = logging.getLogger(__name__)
MAX_OPEN_SHARDS = 32


@dataclass(frozen=True)
class Skipped:
    """An example that was left out: in which shard, under which key, and why."""

    shard: str
    key: str | None
    reason: str


class ShardDataset(IterableDataset[Example]):
    """Iterate over the examples of one or several shards.

    All readers (ranks x DataLoader workers) compute the same order from `seed` and epoch, and each takes its
    own consecutive part. So every example comes exactly once per epoch, also where there are fewer shards
    than readers; ranks get equally many, or one more. Only the files of the own part are opened. Where one
    rank has several workers, the DataLoader takes their batches in turn.

    Args:
        folder_or_glob: a folder with an index.json, one tar file, or a pattern such as "data/*/shard-*.tar".
        seed: of the order.
        shuffle: False for the order in which the shards were written.
        shuffle_window: how far an example may move from its place, after the shards themselves were shuffled;
            the larger, the better mixed, and the more files are read at the same time. No examples are held
            back for it.
        repeat: True to go on with the next epoch for ever, False to end after one.
        rank, world_size: which of how many processes this is; taken from torch.distributed if not given.
        on_bad: what to do with an example that cannot be read: "raise", or "skip" with a warning in the log.
        max_bad: how many one reader may skip per iteration before it raises.

    Raises:
        ValueError: no shards, no examples or fewer than ranks, or contradictory options.
    """

    def __init__(
        self,
        folder_or_glob: str | Path,
        *,
        seed: int = 0,
        shuffle: bool = True,
        shuffle_window: int = 10_000,
        repeat: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        on_bad: Literal["raise", "skip"] = "raise",
        max_bad: int = 100,
    ) -> None:
        super().__init__()
        if (rank is None) != (world_size is None):
            raise ValueError(
                f"give rank and world_size, or neither; given rank={rank}, world_size={world_size}"
            )
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0 to {world_size - 1} with world_size={world_size}, given {rank}")
        if shuffle_window < 1:
            raise ValueError(f"shuffle_window must be at least 1, given {shuffle_window}")
        if on_bad not in ("raise", "skip"):
            raise ValueError(f'on_bad must be "raise" or "skip", given {on_bad!r}')
        self.seed, self.shuffle, self.shuffle_window, self.repeat = seed, shuffle, shuffle_window, repeat
        self.rank, self.world_size = rank, world_size
        self.on_bad, self.max_bad = on_bad, max_bad
        self.skipped: list[Skipped] = []
        self._shards = _find_shards(folder_or_glob)
        self._starts = np.cumsum([0, *(count for _, count in self._shards)])
        # In shared memory, so that workers that live on between epochs see a change too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if not self.num_examples:
            raise ValueError(f"{folder_or_glob}: the shards hold no examples")

    @property
    def num_examples(self) -> int:
        """Examples per epoch, over all ranks."""
        return int(self._starts[-1])

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration starts with."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration starts with; reaches running workers too."""
        if epoch < 0:
            raise ValueError(f"the epoch must be 0 or more, given {epoch}")
        self._epoch.fill_(epoch)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The order of all examples in an epoch [num_examples], as places in the unshuffled sequence."""
        if not self.shuffle:
            return np.arange(self.num_examples)
        random = np.random.default_rng([self.seed, epoch])
        shards = random.permutation(len(self._shards))
        places = np.concatenate([np.arange(self._starts[shard], self._starts[shard + 1]) for shard in shards])
        if self.shuffle_window >= self.num_examples:
            return random.permutation(places)
        delayed = np.arange(len(places)) + random.random(len(places)) * self.shuffle_window
        return places[np.argsort(delayed, kind="stable")]

    def __iter__(self) -> Iterator[Example]:
        rank, world_size = self._layout()
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        if self.num_examples < world_size:
            raise ValueError(f"{self.num_examples} examples cannot be split over {world_size} ranks")
        reader, readers = rank * workers + number, world_size * workers
        start, end = (self.num_examples * part // readers for part in (reader, reader + 1))
        self.skipped = []
        epoch = self.epoch
        with _OpenShards([path for path, _ in self._shards]) as shards:
            while start < end:
                for place in self.order(epoch)[start:end]:
                    example = self._read(shards, int(place))
                    if example is not None:
                        yield example
                if not self.repeat:
                    return
                epoch += 1

    def _read(self, shards: _OpenShards, place: int) -> Example | None:
        shard = int(np.searchsorted(self._starts, place, side="right")) - 1
        number = place - int(self._starts[shard])
        opened = shards[shard]
        if len(opened) != self._shards[shard][1]:
            expected = self._shards[shard][1]
            reason = f"holds {len(opened)} examples, but {expected} were expected: make the folder again"
            raise ShardError(opened.path, None, reason)
        try:
            return opened.example(number)
        except ShardError as error:
            if self.on_bad == "raise":
                raise
            self.skipped.append(Skipped(error.shard, error.key, error.reason))
            log.warning("skipped (%d so far): %s", len(self.skipped), error)
            if len(self.skipped) > self.max_bad:
                raise ValueError(
                    f"more than max_bad={self.max_bad} bad examples, the last one: {error}"
                ) from error
            return None

    def _layout(self) -> tuple[int, int]:
        if self.rank is not None and self.world_size is not None:
            return self.rank, self.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def __getstate__(self) -> dict[str, Any]:
        # A worker process that is started afresh does not know the process group: tell it.
        rank, world_size = self._layout()
        return {**self.__dict__, "rank": rank, "world_size": world_size}


class _OpenShards:
    """The shards in use, opened when needed; of too many, the one not used for longest is closed."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def __getitem__(self, number: int) -> Shard:
        if number not in self._open:
            self._open[number] = Shard(self._paths[number])
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]

    def __enter__(self) -> _OpenShards:
        return self

    def __exit__(self, *error: object) -> None:
        for shard in self._open.values():
            shard.close()


def _find_shards(folder_or_glob: str | Path) -> list[tuple[Path, int]]:
    """Path and number of examples of each shard, in order."""
    folder = Path(folder_or_glob)
    if folder.is_dir():
        return [(folder / shard.file, shard.examples) for shard in list_shards(folder)]
    paths = [Path(path) for path in sorted(glob.glob(str(folder_or_glob), recursive=True))]
    if not paths:
        raise ValueError(
            f"no shards: {folder_or_glob} is neither a folder nor a file nor a pattern that matches one"
        )
    counts: dict[Path, int] = {}
    for parent in dict.fromkeys(path.parent for path in paths):
        if (parent / INDEX_NAME).is_file():
            counts |= {parent / shard.file: shard.examples for shard in list_shards(parent)}
    return [(path, counts[path] if path in counts else _count(path)) for path in paths]


def _count(path: Path) -> int:
    with Shard(path) as shard:
        return len(shard)
