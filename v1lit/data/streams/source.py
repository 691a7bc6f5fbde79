"""`StreamSource`: what a recipe with `data.source.name: webdataset` reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from v1lit.data.config import SourceConfig, StreamConfig
from v1lit.data.errors import ShardError
from v1lit.data.example import Example
from v1lit.data.loading.sequence import random_order
from v1lit.data.streams.examples import StreamFiles
from v1lit.data.streams.options import StreamOptions, files_of
from v1lit.data.streams.samples import Sample, read_samples

PROMISES = (
    "a stream: the length of an epoch is not known, so trainer.max_steps must say when to end, and a run "
    "resumes exactly with as many ranks and workers only; `v1lit data index`, or an import, gives both"
)


class StreamSource:
    """The files of a stream, in which order an epoch reads them, and those for validation.

    Raises ValueError as `StreamOptions.read`.
    """

    def __init__(self, config: SourceConfig, stream: StreamConfig, seed: int) -> None:
        self.options, self.retry, self.seed = StreamOptions.read(config), stream.retry, seed

    @cached_property
    def train(self) -> StreamFiles:
        """The training files. Raises ValueError where nothing matches."""
        options = self.options
        files = files_of(options.path, self.retry)
        return StreamFiles(files, options.members, self.retry, options.shuffle, self.seed)

    @cached_property
    def val(self) -> StreamFiles | None:
        """The files to validate on, if they are a stream. Raises ValueError where nothing matches."""
        if self.options.val_path is None:
            return None
        files = files_of(self.options.val_path, self.retry)
        return replace(self.train, files=files, shuffle=0)

    def order(self, epoch: int) -> list[int]:
        """Indices of the training files, in the order of an epoch."""
        files = len(self.train.files)
        if not self.options.shuffle:
            return list(range(files))
        order: list[int] = np.random.default_rng([self.seed, epoch]).permutation(files).tolist()
        return order

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides which examples a reader reads, as of `OpenedSequence.identity`."""
        return {
            "data.seed": self.seed,
            "data.source.options.shuffle": self.options.shuffle,
            "the files of the stream": self.train.names,
            "NumPy's random order": random_order(),
        }

    def examples(self, stream: StreamFiles, limit: int | None = None) -> Iterator[tuple[str, Example]]:
        """The first examples of some files with their files, in order; unusable ones are left out."""
        samples = (sample for file in stream.files for sample in read_samples(file, self.retry))
        for sample in islice(samples, limit):
            if isinstance(sample, Sample):
                try:
                    example = sample.example(stream.members)
                except ShardError:
                    continue
                yield sample.shard, example
