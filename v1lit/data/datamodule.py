"""`V1DataModule`: shards in, padded batches out."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.batch import Batch, collate
from v1lit.data.config import EncodingConfig, SourceConfig
from v1lit.data.encoding import Encoded, encode
from v1lit.data.shards import INDEX_NAME
from v1lit.data.sources import prepare_source
from v1lit.data.stream import ShardDataset


class V1DataModule(LightningDataModule):
    """Training and validation batches for one backbone.

    The order of the training examples depends on `seed` and epoch alone. Every rank gets the same number of
    batches: what is left over when examples are divided by ranks x workers (fewer than that number) waits for
    another epoch.
    Raises ValueError for a source or options that do not exist, and what `load_processor` and `encode` raise.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        source: SourceConfig | None = None,
        encoding: EncodingConfig | None = None,
        batch_size: int = 2,
        val_batch_size: int | None = None,
        max_val_examples: int | None = None,
        num_workers: int = 0,
        group_by_length: int = 1,
        seed: int = 0,
    ) -> None:
        """Args:
        backbone: that of the model; tokenizer and image processor come from it.
        source: where the shards are, or how to make them.
        encoding: how examples become tokens.
        batch_size: examples per batch on every rank.
        val_batch_size: the same for validation; `batch_size` when not given.
        max_val_examples: validate on the first so many only.
        num_workers: processes that read and encode, on every rank; 0 for none beside the training process.
        group_by_length: batches to look ahead when putting training examples of similar length together,
            so that less is padded; 1 leaves the order as it is.
        seed: of the order of the training examples.
        """
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("val_batch_size", val_batch_size or batch_size, 1),
            ("num_workers", num_workers, 0),
            ("group_by_length", group_by_length, 1),
        ):
            if value < least:
                raise ValueError(f"data.{name} is {value}; give {least} or more")
        self.backbone = backbone
        self.source = source or SourceConfig()
        self.encoding = encoding or EncodingConfig()
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size or batch_size
        self.max_val_examples = max_val_examples
        self.num_workers = num_workers
        self.group_by_length = group_by_length
        self.seed = seed
        self._prepared = False
        self._processor: Processor | None = None
        self._consumed: tuple[int, int] | None = None
        self._resume: tuple[int, int] | None = None

    @property
    def processor(self) -> Processor:
        """Tokenizer and image processor of the backbone, loaded when first asked for."""
        if self._processor is None:
            self._processor = load_processor(self.backbone)
        return self._processor

    def folder(self, split: str) -> Path:
        """Folder of the shards of `train` or `val`; shards without splits are all training data."""
        root = Path(self.source.folder)
        unsplit = split == "train" and not (root / "train").is_dir() and (root / INDEX_NAME).is_file()
        return root if unsplit else root / split

    @property
    def has_val(self) -> bool:
        return (self.folder("val") / INDEX_NAME).is_file()

    # ------------------------------------------------------------------ Lightning's hooks

    def prepare_data(self) -> None:
        """Make the shards, where the source makes them, once; on one process per machine."""
        if not self._prepared:
            prepare_source(self.source)
        self._prepared = True

    def train_dataloader(self) -> DataLoader[Any]:
        examples = ShardDataset(self.folder("train"), seed=self.seed)
        world_size = self.trainer.world_size if self.trainer is not None else 1
        loader = _TrainLoader(
            _EncodedExamples(
                examples,
                self.processor,
                self.encoding,
                even=world_size,
                group=self.batch_size,
                window=self.group_by_length,
            ),
            self,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=partial(collate, pad_id=self.processor.pad_token_id),
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )
        left_over = examples.num_examples % (world_size * max(1, self.num_workers))
        if left_over:
            rank_zero_info(
                f"{left_over} of {examples.num_examples} training examples are left out of every epoch, "
                f"others each time: they do not divide by {world_size} ranks x "
                f"{max(1, self.num_workers)} workers"
            )
        return loader

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        if not self.has_val:
            return []
        examples = ShardDataset(self.folder("val"), shuffle=False)
        return DataLoader(
            _EncodedExamples(examples, self.processor, self.encoding, limit=self.max_val_examples),
            batch_size=self.val_batch_size,
            num_workers=min(self.num_workers, 1),
            collate_fn=partial(collate, pad_id=self.processor.pad_token_id),
        )

    # ------------------------------------------------------------------ resuming

    def consumed(self, batch: Batch) -> None:
        """Note that training has used this batch; a checkpoint then says where to go on."""
        self._consumed = batch.position

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of the last batch that was used; the same on every rank."""
        return {} if self._consumed is None else {"consumed": list(self._consumed)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "consumed" in state_dict:
            epoch, number = state_dict["consumed"]
            self._resume = (int(epoch), int(number))

    def take_start(self, epoch: int) -> int:
        """Batches of this epoch that a resumed run has already used; asked once."""
        resume, self._resume = self._resume, None
        return resume[1] + 1 if resume is not None and resume[0] == epoch else 0


class _EncodedExamples(IterableDataset[Encoded]):
    """A reader's examples, encoded. With `even`, the number of ranks, all readers give equally many.

    `group` consecutive examples make a batch; over a `window` of several batches they are grouped by length.
    """

    def __init__(
        self,
        examples: ShardDataset,
        processor: Processor,
        config: EncodingConfig,
        even: int | None = None,
        limit: int | None = None,
        group: int = 1,
        window: int = 1,
    ) -> None:
        self.examples, self.processor, self.config = examples, processor, config
        self.even, self.limit = even, limit
        self.group, self.window = group, window

    def per_reader(self, workers: int) -> int:
        """Examples that every reader gives per epoch."""
        assert self.even is not None
        return self.examples.num_examples // (self.even * max(1, workers))

    def __iter__(self) -> Iterator[Encoded]:
        worker = get_worker_info()
        limit = self.limit
        if self.even is not None:
            limit = self.per_reader(worker.num_workers if worker is not None else 1)
        encoded = (encode(example, self.processor, self.config) for example in islice(self.examples, limit))
        if self.window == 1:
            return encoded
        number = worker.id if worker is not None else 0
        return grouped_by_length(
            encoded, self.group, self.window, seed=f"{self.examples.seed} {self.examples.epoch} {number}"
        )


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


class _TrainLoader(DataLoader[Any]):
    """Knows its length and epoch, numbers its batches, and can start in the middle of an epoch."""

    dataset: _EncodedExamples

    def __init__(self, dataset: _EncodedExamples, module: V1DataModule, **kwargs: Any) -> None:
        super().__init__(dataset, **kwargs)
        self._module = module

    def __len__(self) -> int:
        assert self.batch_size is not None
        return max(1, self.num_workers) * math.ceil(
            self.dataset.per_reader(self.num_workers) / self.batch_size
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # DataLoader promises its own iterator class
        trainer = self._module.trainer
        epoch = trainer.current_epoch if trainer is not None else self.dataset.examples.epoch
        self.dataset.examples.set_epoch(epoch)
        start = self._module.take_start(epoch)
        for number, batch in enumerate(super().__iter__()):
            if number >= start:
                yield replace(batch, position=(epoch, number))
