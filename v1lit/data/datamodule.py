"""`V1DataModule`: shards in, batches out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.config import EncodingConfig, MixtureConfig, PackingConfig, SourceConfig, StreamConfig
from v1lit.data.encode.batch import Batch
from v1lit.data.encode.mapping import ExampleMap
from v1lit.data.example import Example, ExampleRef
from v1lit.data.loading.context import LoaderContext
from v1lit.data.loading.dataset import ShardDataset
from v1lit.data.loading.loader import TrainLoader
from v1lit.data.loading.planning import epoch_steps, length_tables, say_what_is_unknown
from v1lit.data.loading.ranks import Ranks
from v1lit.data.loading.reading import Encoder, MicroBatchReader
from v1lit.data.loading.saved_reading import load_reading, refuse_other_order, save_reading
from v1lit.data.loading.sequence import OpenedSequence, open_sequence
from v1lit.data.loading.skips import SKIPPED_FILE, SkipList
from v1lit.data.loading.state import ReadingState, progress_of
from v1lit.data.loading.trainer_limits import check_limits, refuse_changing_accumulation
from v1lit.data.loading.val_loader import ValLoader
from v1lit.data.sampling.epoch import Progress, StepLayout, steps_left
from v1lit.data.sampling.grouping import Grouping
from v1lit.data.shards.catalog import Catalog
from v1lit.data.sources.registry import (
    has_train,
    has_val,
    is_stream,
    prepare_source,
    train_names,
    train_sources,
    val_names,
    val_sources,
)
from v1lit.data.streams.loader import StreamLoader, StreamValLoader
from v1lit.data.streams.source import PROMISES, StreamSource
from v1lit.data.streams.state import StreamReading, stream_progress_of
from v1lit.errors import check_least
from v1lit.revisit.config import POINT_AND_COPY, RevisitConfig
from v1lit.revisit.registry import make_strategy


class V1DataModule(LightningDataModule):
    """Training and validation batches for one backbone.

    Batches are flat: examples one behind another in one row, without padding, a fixed number of them or, with
    `packing.length`, as many as fill the row. They are padded for backbones that cannot pack.

    Which examples make an optimizer step depends on the data, `seed`, epoch and the step's number of batches
    (ranks x accumulated ones) alone, not on how many ranks and workers share the work. Every example comes
    once per epoch, and every rank gets the same number of batches; see docs/streaming.md.

    Args:
        backbone: that of the model; tokenizer and image processor come from it.
        source: where the shards are, or how to make them.
        encoding: how examples become tokens.
        batch_size: examples per batch on every rank, where rows are not filled by `packing`.
        val_batch_size: the same for validation; `batch_size` when not given.
        max_val_examples: validate on the first N only, of every source that has a `val` of its own.
        num_workers: processes that read and encode, on every rank; 0 for none beside the training process.
        group_by_length: for backbones that cannot pack: batches to look ahead when putting training examples
            of similar length together, so that less is padded; 1 leaves the order as it is. Flat batches have
            no padding and are not grouped.
        seed: of the order of the training examples.
        packing: fill the rows of training batches to a length.
        stream: how shards are read: order, cache, what bad examples may do.
        map: `module.name` of a function `Example -> Example | None`, or class_path and init_args of it or of
            a class, that changes examples before they are encoded, or leaves them out.
        map_validation: whether validation examples go through `map` as well.
        revisit: how the regions of traces are written; in a recipe it is that of the model.

    Raises ValueError for a source or options that do not exist.
    """

    GROUP: ClassVar[str] = "data"

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
        stream: StreamConfig | None = None,
        map: str | dict[str, Any] | None = None,
        map_validation: bool = True,
        revisit: RevisitConfig = POINT_AND_COPY,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.revisit = revisit
        self.source = source or SourceConfig()
        self.encoding = encoding or EncodingConfig()
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size or batch_size
        self.max_val_examples = max_val_examples
        self.num_workers = num_workers
        self.group_by_length = group_by_length
        self.seed = seed
        check_least(self, 1, "batch_size", "val_batch_size", "group_by_length")
        check_least(self, 0, "num_workers")
        self.packing = packing or PackingConfig()
        self.packing.check_lengths(self.encoding)
        self.stream = stream or StreamConfig()
        self.map = None if map is None else ExampleMap(map, seed)
        self.map_validation = map_validation
        self.streams = StreamSource(self.source, self.stream, seed) if is_stream(self.source) else None
        self._prepared = False
        self._forget()
        self._skips = SkipList(self.stream)

    @property
    def options(self) -> dict[str, Any]:
        """What it was made with, as plain data: what a resumed run is compared with."""
        configs = ("backbone", "source", "encoding", "packing", "stream", "revisit")
        plain = ["batch_size", "val_batch_size", "max_val_examples", "num_workers", "group_by_length", "seed"]
        return {
            **{name: asdict(getattr(self, name)) for name in configs},
            **{name: getattr(self, name) for name in plain},
            "map": None if self.map is None else self.map.spec,
            "map_validation": self.map_validation,
        }

    def _forget(self) -> None:
        """Be at the beginning."""
        self._train: OpenedSequence | None = None
        self._val_content: str | None = None
        self._reading: ReadingState | StreamReading = (
            ReadingState() if self.streams is None else StreamReading()
        )
        self._start: tuple[int, Progress] = (0, Progress())
        """Steps before a checkpoint, and how far it has read."""

    @cached_property
    def processor(self) -> Processor:
        """Tokenizer and image processor of the backbone, loaded when first asked for."""
        return load_processor(self.backbone, revisit=make_strategy(self.revisit))

    @property
    def flat(self) -> bool:
        """Whether batches are flat: the backbone keeps the examples of one row apart."""
        return self.processor.backbone.packs

    @property
    def train_sources(self) -> list[MixtureConfig]:
        """Where the training shards are."""
        return train_sources(self.source, self.stream.retry)

    @property
    def val_sources(self) -> list[MixtureConfig]:
        """Where the validation shards are, if there are any: more than one where sources have their own."""
        return val_sources(self.source, self.max_val_examples)

    def source_names(self, split: Literal["train", "val"]) -> list[str]:
        """Names of the sources of a mixture, in the order that `Batch.sources` counts; none without one."""
        return train_names(self.source) if split == "train" else val_names(self.source)

    @property
    def has_train(self) -> bool:
        """Whether the training shards are there; a source may have to make them first."""
        return has_train(self.source, self.stream.retry)

    @property
    def has_val(self) -> bool:
        """Whether there are validation shards."""
        return has_val(self.source, self.stream.retry)

    @property
    def val_content(self) -> str | None:
        """Digits that change with the validation shards; None where there are none."""
        if self._val_content is None and self.has_val:
            if self.streams is not None and self.streams.val is not None:
                self._val_content = self.streams.val.names
            else:
                catalogs = [Catalog(source.shards, self.stream) for source in self.val_sources]
                self._val_content = self._val_digits(catalogs)
        return self._val_content

    @property
    def grouping(self) -> Grouping:
        """Which examples make a training batch."""
        by_length = 1 if self.flat else self.group_by_length
        return Grouping(self.batch_size, self.packing, by_length, self.seed)

    @property
    def opened(self) -> OpenedSequence:
        """The training examples and their order. Raises ValueError where there are none."""
        if self._train is None:
            self._train = open_sequence(self.train_sources, self.stream, self.seed)
        return self._train

    def examples(self, split: Literal["train", "val"]) -> Iterator[Example]:
        """Examples as they are encoded, in the order of the shards, on one rank, for a look at them.

        Of several sources to validate on, one of each in turn. What cannot be read is left out, and what the
        map leaves out. Raises ValueError and MapError.
        """
        map, is_val = self._map_of(split), split == "val"
        stream = self.streams and (self.streams.val if is_val else self.streams.train)
        examples: Iterable[tuple[str, Example]]
        if self.streams and stream:
            examples = self.streams.examples(stream, self.max_val_examples if is_val else None)
        else:
            sources = self.val_sources if is_val else self.train_sources[:1]
            turns = zip_longest(*(self._in_order(source.shards) for source in sources))
            examples = (one for turn in turns for one in turn if one is not None)
        for index, (shard, example) in enumerate(examples):
            mapped = example if map is None else map(example, shard, ExampleRef(index, 0, 0, index))
            if mapped is not None:
                yield mapped

    # ------------------------------------------------------------------ Lightning's hooks

    def prepare_data(self) -> None:
        """Make what the source makes, and measure lengths where rows need them; once per machine."""
        self.packing.check_packs(self.backbone.name, self.flat)
        if not self._prepared:
            prepare_source(self.source, self.stream.retry)
            if self.streams is None:
                length_tables(self.opened, self.grouping, self._encoder("train"), measure=True)
            else:
                _ = self.streams.train, self.streams.val  # told now where nothing matches
        self._prepared = True

    def setup(self, stage: str) -> None:
        """Begin a run: forget how far an earlier one on this data module has read."""
        self._forget()
        if self.trainer is None:
            self._skips = SkipList(self.stream)
            return
        refuse_changing_accumulation(self.trainer)
        path = Path(self.trainer.default_root_dir) / SKIPPED_FILE if self.trainer.global_rank == 0 else None
        self._skips = SkipList(self.stream, path)
        if self.has_train:
            self.check_limits(self.trainer)

    def check_limits(self, trainer: Trainer) -> None:
        """Check the Trainer's shares and intervals against the data; raises ValueError."""
        ranks = Ranks.readers(trainer)
        micro_batches = ranks * trainer.accumulate_grad_batches

        def train_batches() -> int | None:
            if self.streams is not None or self.grouping.packs or not self.opened.indexed:
                return None
            start, drop = Progress(layout=StepLayout(micro_batches, "")), self.stream.tail == "drop"
            steps = steps_left(self.opened.sequence, start, self.grouping.size, drop)
            return None if steps is None else steps * trainer.accumulate_grad_batches

        def val_batches() -> int | None:
            if self.streams is not None and self.streams.val is not None:
                return None
            length = self._open_val().sequence.length if self.has_val else 0
            return None if length is None else -(-length // (self.val_batch_size * ranks))

        check_limits(trainer, train_batches, val_batches)

    def train_dataloader(self) -> TrainLoader | StreamLoader:
        """Flat or padded batches.

        How many (`len`) is not known where rows are filled, without an index, and of a stream.
        """
        self.packing.check_packs(self.backbone.name, self.flat)
        encoder, context = self._encoder("train"), self._context
        if isinstance(self._reading, StreamReading):
            assert self.streams is not None
            rank_zero_info(PROMISES)
            return StreamLoader(self.streams, encoder, self.grouping, self._reading, context)
        steps = epoch_steps(self.opened, self.grouping, encoder, context)
        say_what_is_unknown(steps, encoder)
        return TrainLoader(steps, MicroBatchReader(self.opened.examples, encoder), self._reading)

    def val_dataloader(self) -> ValLoader | StreamValLoader | list[Any]:
        """Flat or padded batches of `val_batch_size` examples, in the order of the shards."""
        if not self.has_val:
            return []
        encoder, size = self._encoder("val"), self.val_batch_size
        context = replace(self._context, num_workers=min(self.num_workers, 1))
        if self.streams is not None and self.streams.val is not None:
            return StreamValLoader(self.streams.val, encoder, size, self.max_val_examples, context)
        opened = self._open_val()
        self._val_content = self._val_digits(opened.catalogs)
        if self._train is not None and self._train.remote:
            # Not forked while a thread of the training loader, where there is one, fetches remote shards.
            context = replace(context, num_workers=0)
        return ValLoader(opened, MicroBatchReader(opened.examples, encoder), size, context)

    def teardown(self, stage: str) -> None:
        """Sum up what could not be used."""
        if self._skips.count:
            rank_zero_info(self._skips.summary())
        if self._skips.left_out:
            left_out, total = self._skips.left_out, self._skips.read + self._skips.left_out
            rank_zero_info(f"data.map left out {left_out} of {total} examples")

    @property
    def _context(self) -> LoaderContext:
        return LoaderContext(self.stream, self._skips, self.num_workers, self.trainer)

    def _encoder(self, split: str) -> Encoder:
        return Encoder(self.processor, self.encoding, self.stream, self.flat, self._map_of(split))

    def _map_of(self, split: str) -> ExampleMap | None:
        return self.map if split == "train" or self.map_validation else None

    def _open_val(self) -> OpenedSequence:
        return open_sequence(self.val_sources, replace(self.stream, lanes=1), shuffle=False, count=True)

    def _val_digits(self, catalogs: Sequence[Catalog]) -> str:
        return "+".join(catalog.content[:16] for catalog in catalogs)

    def _in_order(self, location: str) -> Iterator[tuple[str, Example]]:
        config, alone = self.stream, {"rank": 0, "world_size": 1}
        shards = ShardDataset(location, shuffle=False, on_bad="skip", config=config, **alone)
        return ((location, example) for example in shards)

    # ------------------------------------------------------------------ how far a run has read

    def consumed(self, batch: Batch) -> None:
        """Note that training has used this batch; a checkpoint then says where to resume."""
        if batch.read is not None:
            # Which batch of an epoch is its last is known to Lightning alone, which may end epochs early.
            self._reading.used(batch.read, self.trainer is not None and self.trainer.is_last_batch)

    def state_dict(self) -> dict[str, Any]:
        """How far all ranks have read, a few kilobytes for each. To be called on every rank."""
        return save_reading(self._reading, self._identity, self._skips, Ranks.of(self.trainer))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume where the state was saved, also on another number of ranks or workers.

        Raises ValueError if training data are being read already, or are others than those of the checkpoint.
        """
        if state_dict:
            load_reading(state_dict, self._reading, self._identity, self._skips)

    def refuse_other_order(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if the examples of the epoch that a state is in come in another order now."""
        refuse_other_order(state, self._identity)

    def _identity(self) -> dict[str, Any]:
        """What decides the order of the training examples."""
        return self.opened.identity if self.streams is None else self.streams.identity

    def batches_done(self, state: Mapping[str, Any], steps: int) -> int | None:
        """Batches of a rank, as they are divided now, that count as done in the epoch that a state is in.

        None between two epochs. steps: optimizer steps of the run at that time, noted for `planned_steps`.
        """
        if isinstance(self._reading, StreamReading):
            amid = bool(state) and stream_progress_of(state).layout is not None
            return int(state["steps"]) * self._context.accumulate if amid else None
        progress = progress_of(state) if state else Progress()
        self._start = steps, progress
        if progress.layout is None:
            return None
        epoch = epoch_steps(self.opened, self.grouping, self._encoder("train"), self._context)
        return epoch.batches_done(progress.divided(epoch.layout, self.opened.sequence.length))

    def planned_steps(self, epochs: int) -> int | None:
        """Optimizer steps of a run of N epochs, also those before the checkpoint that it resumes from.

        None where that is not known. To be called on all ranks, the first time.
        """
        assert self.trainer is not None
        loader, (done, progress) = self.trainer.train_dataloader, self._start
        left = loader.steps.planned(progress, epochs) if isinstance(loader, TrainLoader) else None
        return None if left is None else done + left
