"""`V1DataModule`: shards in, batches out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.batch import Batch
from v1lit.data.config import EncodingConfig, PackingConfig, SourceConfig
from v1lit.data.loader import Grouping, Groups, TrainLoader, batch_maker
from v1lit.data.shards import INDEX_NAME
from v1lit.data.sources import prepare_source
from v1lit.data.stream import ShardDataset


class V1DataModule(LightningDataModule):
    """Training and validation batches for one backbone.

    Batches are flat: examples one behind another in one row, without padding, a fixed number of them or, with
    `packing.length`, as many as fill the row. They are padded for backbones that cannot pack.

    The order of the training examples depends on `seed`, epoch and, when packed or grouped, `num_workers`
    alone. Every rank gets the same number of batches. What is left over when examples are divided by ranks x
    workers (fewer than that number) waits for another epoch, and so do packs that not all ranks have.
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
        packing: PackingConfig | None = None,
    ) -> None:
        """Args:
        backbone: that of the model; tokenizer and image processor come from it.
        source: where the shards are, or how to make them.
        encoding: how examples become tokens.
        batch_size: examples per batch on every rank, where rows are not filled by `packing`.
        val_batch_size: the same for validation; `batch_size` when not given.
        max_val_examples: validate on the first so many only.
        num_workers: processes that read and encode, on every rank; 0 for none beside the training process.
        group_by_length: for backbones that cannot pack: batches to look ahead when putting training examples
            of similar length together, so that less is padded; 1 leaves the order as it is. Flat batches have
            no padding and are not grouped.
        seed: of the order of the training examples.
        packing: fill the rows of training batches to a length.
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
        self.packing = packing or PackingConfig()
        _check_lengths(self.packing, self.encoding)
        self._prepared = False
        self._processor: Processor | None = None
        self._consumed: tuple[int, int] | None = None
        self._resume: tuple[int, int] | None = None
        self._begun = False

    @property
    def processor(self) -> Processor:
        """Tokenizer and image processor of the backbone, loaded when first asked for."""
        if self._processor is None:
            self._processor = load_processor(self.backbone)
        return self._processor

    @property
    def flat(self) -> bool:
        """Whether batches are flat: the backbone keeps the examples of one row apart."""
        return self.processor.backbone.packs

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
        self._check_packing()
        if not self._prepared:
            prepare_source(self.source)
        self._prepared = True

    def setup(self, stage: str) -> None:
        """Begin a run: forget where an earlier one on this data module would have been resumed."""
        self._resume, self._begun = None, False

    def train_dataloader(self) -> TrainLoader:
        """Flat or padded batches, of unknown number (no `len`) where rows are filled."""
        self._check_packing()
        examples = ShardDataset(self.folder("train"), seed=self.seed)
        world_size = self.trainer.world_size if self.trainer is not None else 1
        grouping = Grouping(self.batch_size, self.packing, by_length=1 if self.flat else self.group_by_length)
        loader = TrainLoader(
            Groups(examples, self.processor, self.encoding, grouping, even=world_size),
            self.take_place,
            self.trainer,
            num_workers=self.num_workers,
            collate_fn=batch_maker(self.processor, self.flat),
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
        """Flat or padded batches of `val_batch_size` examples, in the order of the shards."""
        if not self.has_val:
            return []
        examples = ShardDataset(self.folder("val"), shuffle=False)
        grouping = Grouping(self.val_batch_size)
        return DataLoader(
            Groups(examples, self.processor, self.encoding, grouping, limit=self.max_val_examples),
            batch_size=None,
            num_workers=min(self.num_workers, 1),
            collate_fn=batch_maker(self.processor, self.flat),
        )

    def _check_packing(self) -> None:
        if self.packing.length is not None and not self.flat:
            raise ValueError(
                f"data.packing.length is {self.packing.length}, but the backbone {self.backbone.name!r} "
                "cannot keep the examples of a row apart; set data.packing.length=null, and "
                "data.group_by_length=16 or so to pad little"
            )

    # ------------------------------------------------------------------ resuming

    def consumed(self, batch: Batch) -> None:
        """Note that training has used this batch; a checkpoint then says where to go on."""
        epoch, number = batch.position
        # Which batch of an epoch is its last is known to Lightning alone, which may end epochs early.
        is_last = self.trainer is not None and self.trainer.is_last_batch
        self._consumed = (epoch + 1, -1) if is_last else (epoch, number)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of the last batch that was used; -1 before the first. The same on every rank."""
        return {} if self._consumed is None else {"consumed": list(self._consumed)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state was saved. Raises ValueError if training data are being read already."""
        if "consumed" not in state_dict:
            return
        if self._begun:
            raise ValueError(
                "the trainer read training data before it loaded the checkpoint, to estimate the number of "
                "steps; set trainer.max_steps, and trainer.max_epochs=-1"
            )
        epoch, number = state_dict["consumed"]
        self._resume = (int(epoch), int(number))

    def take_place(self, current_epoch: int) -> tuple[int, int]:
        """Epoch and number of the next batch to read.

        The trainer's epoch from its start, except once after a checkpoint was loaded: Lightning fetches the
        first batch before it restores its own counters, where the number of batches is unknown.
        """
        resume, self._resume, self._begun = self._resume, None, True
        beginning = (current_epoch, 0)
        return beginning if resume is None else max(beginning, (resume[0], resume[1] + 1))


def _check_lengths(packing: PackingConfig, encoding: EncodingConfig) -> None:
    length, longest = packing.length, encoding.max_tokens
    if length is not None and longest > length:
        raise ValueError(
            f"data.encoding.max_tokens is {longest}, but data.packing.length is {length}: an example may be "
            f"{longest - length} tokens longer than a row; set data.encoding.max_tokens={length} or less, or "
            f"data.packing.length={longest} or more"
        )
