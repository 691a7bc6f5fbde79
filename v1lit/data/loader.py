"""Examples -> batches in worker processes, and the training loader that numbers them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from v1lit.backbones.processor import Processor
from v1lit.data.batch import Batch, collate, flatten
from v1lit.data.config import EncodingConfig, PackingConfig
from v1lit.data.encoding import Encoded, encode
from v1lit.data.packing import pack
from v1lit.data.stream import ShardDataset
from v1lit.data.windows import Ranks, Window, windows

Group = list[Encoded]


@dataclass(frozen=True)
class Grouping:
    """Which examples of a reader make a batch."""

    size: int
    """Examples per batch, where they are not packed."""
    packing: PackingConfig | None = None
    """Fill rows instead of counting examples, where it has a length."""
    by_length: int = 1
    """Batches to look ahead when similar lengths are put together; 1 leaves the order as it is."""

    @property
    def packs(self) -> bool:
        return self.packing is not None and self.packing.length is not None

    def __call__(self, examples: Iterator[Encoded], seed: str) -> Iterator[Group]:
        if self.packing is not None and self.packs:
            return pack(examples, self.packing)
        if self.by_length > 1:
            examples = grouped_by_length(examples, self.size, self.by_length, seed)
        return iter(lambda: list(islice(examples, self.size)), [])


class Groups(IterableDataset[Group]):
    """A reader's examples, encoded and put into groups, one per batch.

    With `even`, the number of ranks, all readers give equally many examples; otherwise at most `limit`.
    """

    def __init__(
        self,
        examples: ShardDataset,
        processor: Processor,
        encoding: EncodingConfig,
        grouping: Grouping,
        even: int | None = None,
        limit: int | None = None,
    ) -> None:
        self.examples, self.processor, self.encoding, self.grouping = examples, processor, encoding, grouping
        self.even, self.limit = even, limit

    def per_reader(self, workers: int) -> int:
        """Examples that every reader gives per epoch."""
        assert self.even is not None
        return self.examples.num_examples // (self.even * max(1, workers))

    def __iter__(self) -> Iterator[Group]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        limit = self.limit if self.even is None else self.per_reader(workers)
        encoded = (encode(one, self.processor, self.encoding) for one in islice(self.examples, limit))
        return self.grouping(encoded, seed=f"{self.examples.seed} {self.examples.epoch} {number}")


def batch_maker(processor: Processor, flat: bool) -> Callable[[Sequence[Encoded]], Batch]:
    """Makes a flat or a padded batch of a group, labels counted; runs in the workers."""
    start = processor.pointer_start
    if flat:
        return partial(flatten, pointer_start=start)
    return partial(collate, pad_id=processor.pad_token_id, pointer_start=start)


def grouped_by_length(examples: Iterator[Encoded], group: int, window: int, seed: str) -> Iterator[Encoded]:
    """The same examples, so that `group` consecutive ones are of similar length.

    Sorted within `window` groups, which then come in random order. Only the last group may be smaller.
    """
    rng = random.Random(seed)
    while chunk := list(islice(examples, group * window)):
        chunk.sort(key=lambda example: len(example.input_ids))
        short = chunk[: len(chunk) % group]
        rest = chunk[len(short) :]
        groups = [rest[start : start + group] for start in range(0, len(rest), group)]
        rng.shuffle(groups)
        yield from itertools.chain(*groups, short)


class TrainLoader(DataLoader[Any]):
    """Numbers its batches, can start within an epoch, and tells every batch the counts of its step.

    The batches of an optimizer step are fetched together and wait in the host's memory. An epoch of packs
    ends with the last step for which every rank has all batches; what is left over is said. (A smaller last
    step would be counted into the next epoch's first one by Lightning, when a run is resumed behind it.)
    """

    dataset: Groups

    def __init__(
        self,
        dataset: Groups,
        place: Callable[[int], tuple[int, int]],
        trainer: Trainer | None = None,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        """Args:
        dataset: groups of examples.
        place: given the trainer's epoch, gives the epoch to read and the number of its first batch.
        trainer: whose epochs and accumulation count; None for single batches of the dataset's epoch.
        num_workers, options: as in torch's DataLoader.
        """
        if num_workers > 0:
            # The next step's batches are made while this step's are used.
            options["prefetch_factor"] = max(2, math.ceil(_accumulate(trainer) / num_workers))
        super().__init__(dataset, batch_size=None, num_workers=num_workers, **options)
        self._place, self._trainer = place, trainer
        self._ranks = Ranks.of(1 if trainer is None else trainer.world_size)

    def __len__(self) -> int:
        """Batches per epoch on every rank. Raises TypeError where packing makes the number unknown."""
        grouping = self.dataset.grouping
        if grouping.packs:
            raise TypeError("how many packs an epoch has is not known before it ends")
        return max(1, self.num_workers) * math.ceil(self.dataset.per_reader(self.num_workers) / grouping.size)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # DataLoader promises its own iterator class
        current = self.dataset.examples.epoch if self._trainer is None else self._trainer.current_epoch
        epoch, start = self._place(current)
        self.dataset.examples.set_epoch(epoch)
        number = examples = 0
        for window in self._windows(start):
            examples += window.examples
            for batch in window.batches:
                if number >= start:
                    yield replace(batch, position=(epoch, number))
                number += 1
        self._report_left_over(epoch, examples)

    def _windows(self, start: int) -> Iterator[Window]:
        whole = self.dataset.grouping.packs
        accumulate = partial(_accumulate, self._trainer)
        batches = super().__iter__()
        for window in windows(batches, accumulate, self._ranks, start, whole=whole, limit=self._limit):
            yield window.pinned() if self.pin_memory else window

    @property
    def _limit(self) -> float:
        """Batches of an epoch that the trainer wants, which may be fewer than there are."""
        return math.inf if self._trainer is None else self._trainer.num_training_batches

    def _report_left_over(self, epoch: int, used: int) -> None:
        """Raises ValueError where nothing was used at all: epochs would follow one another for ever."""
        workers = max(1, self.num_workers)
        total = self._ranks.number * workers * self.dataset.per_reader(workers)
        batches = f"{_accumulate(self._trainer)} batches on each of {self._ranks.number} ranks"
        if not used:
            raise ValueError(
                f"{total} training examples do not fill the {batches} that make one optimizer step; lower "
                "trainer.accumulate_grad_batches, the number of devices or data.packing.length"
            )
        limited = self._trainer is not None and self._trainer.limit_train_batches not in (None, 1.0)
        if used < total and not limited:
            rank_zero_info(
                f"epoch {epoch}: {total - used} of {total} training examples are left over, others each "
                f"time: they do not make a whole optimizer step of {batches}"
            )


def _accumulate(trainer: Trainer | None) -> int:
    return 1 if trainer is None else trainer.accumulate_grad_batches
