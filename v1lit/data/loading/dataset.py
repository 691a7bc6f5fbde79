"""`ShardDataset`: the examples of shards one by one, in a reproducible order, without a trainer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from v1lit.data.config import MixtureConfig, StreamConfig
from v1lit.data.errors import ShardError
from v1lit.data.example import Example, ExampleRef
from v1lit.data.loading.sequence import open_sequence

log = logging.getLogger(__name__)
READ_TOGETHER = 16
"""Examples that are read in one go before the first is decoded, which would empty the processor's caches:
reading them costs half as much."""


class ShardDataset(IterableDataset[Example]):
    """Iterate over the examples of one location.

    Rank r of n takes the epoch indices r, r + n, r + 2n, ... of an order that `seed` and epoch alone decide,
    and its DataLoader workers take turns. So every example comes exactly once per epoch, also where there are
    fewer shards than readers.

    Args:
        location: a folder of shards, a tar file, a pattern such as "data/*/shard-{000..099}.tar", or a URL of
            one of these. Without an index all shards are opened first, to count their examples.
        seed: of the order.
        shuffle: False for the order in which the shards were written.
        epoch: which epoch's order.
        rank, world_size: which of N processes this is; taken from torch.distributed if not given.
        on_bad: what to do with an example that cannot be read: "raise", or "skip" with a warning in the log
            and an entry in `skipped`.
        config: the shuffle window, cache and retries.

    Raises ValueError for no shards, no examples and contradictory options, and ShardError for a damaged shard
    without an index where `on_bad` is "raise".
    """

    def __init__(
        self,
        location: str | Path,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epoch: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        on_bad: Literal["raise", "skip"] = "raise",
        config: StreamConfig | None = None,
    ) -> None:
        super().__init__()
        if (rank is None) != (world_size is None):
            raise ValueError(
                f"give rank and world_size, or neither; given rank={rank}, world_size={world_size}"
            )
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0 to {world_size - 1} with world_size={world_size}, given {rank}")
        if on_bad not in ("raise", "skip"):
            raise ValueError(f'on_bad must be "raise" or "skip", given {on_bad!r}')
        if epoch < 0:
            raise ValueError(f"the epoch must be 0 or more, given {epoch}")
        self.epoch, self.on_bad = epoch, on_bad
        self.rank, self.world_size = rank, world_size
        self.skipped: list[ShardError] = []
        source = MixtureConfig(str(location))
        self._opened = open_sequence([source], config or StreamConfig(), seed, shuffle=shuffle, count=True)
        for error in self._opened.lost:
            if on_bad == "raise":
                raise error
            log.warning("skipped with all its examples: %s", error)

    def __len__(self) -> int:
        """Examples per epoch, over all ranks and workers."""
        examples = self._opened.sequence.examples
        assert examples is not None
        return examples

    def __iter__(self) -> Iterator[Example]:
        rank, world_size = self._layout()
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        self.skipped = list(self._opened.lost)
        own = np.arange(rank + world_size * worker_id, len(self), world_size * workers)
        for start in range(0, len(own), READ_TOGETHER):
            epoch_indices = own[start : start + READ_TOGETHER]
            refs = self._opened.sequence.find(self.epoch, epoch_indices)
            table = zip(epoch_indices, refs.sources, refs.shards, refs.indices, strict=True)
            for example in [self._read(ExampleRef(*map(int, row))) for row in table]:
                if not isinstance(example, ShardError):
                    yield example
                elif self.on_bad == "raise":
                    raise example
                else:
                    self.skipped.append(example)
                    log.warning("skipped (%d so far): %s", len(self.skipped), example)

    def _read(self, ref: ExampleRef) -> Example | ShardError:
        try:
            return self._opened.examples.read(ref)
        except ShardError as error:  # told when its turn comes
            return error

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
