"""Our shards as a pipeline of the `webdataset` package, for training loops of one's own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import webdataset as wds

from v1lit.data.config import StreamConfig
from v1lit.data.errors import ShardError
from v1lit.data.example import Example
from v1lit.data.shards import Shard
from v1lit.data.shards.catalog import Catalog

log = logging.getLogger(__name__)


class ExampleDataset(wds.WebDataset):
    """A `webdataset.WebDataset` whose samples are `Example`s: `.map`, `.select`, `.shuffle`, `WebLoader`, ...

    The shards are read by our own reader, from front to back: checksums are verified where there is an index,
    members have their limits, and nothing is decoded by its extension, so nothing is ever unpickled. As
    `webdataset` does, ranks and workers share the shards: each shard is read by one of them, so some have
    nothing to do where there are fewer shards than readers, and nobody knows a length.

    Args:
        location: as of `ShardDataset`: a folder of shards, a file, a pattern or a URL.
        shuffle_shards: permute the order of the shards, with `webdataset.detshuffle`; examples are mixed by
            `.shuffle(1000)` behind it.
        seed: of that order, the same on all ranks and workers.
        on_bad: an example or a shard that cannot be read is raised, or skipped with a warning in the log and
            counted in `skipped`.
        config: cache and retries for remote shards.

    Raises ValueError where there are no shards and for an unknown `on_bad`; while iterating ShardError, with
    shard and key, where `on_bad` is "raise".
    """

    def __init__(
        self,
        location: str | Path,
        *,
        shuffle_shards: bool = False,
        seed: int = 0,
        on_bad: Literal["raise", "skip"] = "raise",
        config: StreamConfig | None = None,
    ) -> None:
        if on_bad not in ("raise", "skip"):
            raise ValueError(f'on_bad must be "raise" or "skip", given {on_bad!r}')
        wds.DataPipeline.__init__(self)  # not WebDataset's, which opens and decodes by itself
        catalog = Catalog(location, config)
        self._skipped = torch.zeros((), dtype=torch.int64).share_memory_()
        self.append(wds.SimpleShardList(catalog.files))
        if shuffle_shards:
            # Before they are shared out, so that all readers must permute alike.
            self.append(wds.detshuffle(bufsize=len(catalog.files), initial=len(catalog.files), seed=seed))
        self.append(wds.split_by_node)
        self.append(wds.split_by_worker)
        self.append(_ShardReader(catalog, on_bad == "skip", self._skipped))

    @property
    def skipped(self) -> int:
        """Examples and whole shards skipped so far, by all workers and all pipelines made from this one."""
        return int(self._skipped)


class _ShardReader:
    """Stage of a pipeline: shards -> their examples."""

    def __init__(self, catalog: Catalog, skip: bool, skipped: torch.Tensor) -> None:
        self.catalog, self.skip, self.skipped = catalog, skip, skipped

    def __call__(self, shards: Iterable[dict[str, Any]]) -> Iterator[Example]:
        indices = {file: index for index, file in enumerate(self.catalog.files)}
        for sample in shards:
            try:
                shard = self.catalog.open(indices[sample["url"]])
            except ShardError as error:
                self._bad(error)
                continue
            with shard:
                yield from self._examples(shard)

    def _examples(self, shard: Shard) -> Iterator[Example]:
        for index in range(len(shard)):
            try:
                example = shard.example(index)
            except ShardError as error:
                self._bad(error)
            else:
                yield example

    def _bad(self, error: ShardError) -> None:
        if not self.skip:
            raise error
        self.skipped += 1
        log.warning("skipped (%d so far): %s", int(self.skipped), error)
