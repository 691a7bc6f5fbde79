"""`V1DataModule`: shards in, batches out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.config import EncodingConfig, MixtureConfig, PackingConfig, SourceConfig, StreamConfig
from v1lit.data.encode.batch import Batch, blank_batch
from v1lit.data.encode.mapping import ExampleMap
from v1lit.data.example import Example, ExampleRef
from v1lit.data.lengths.lookup import LengthLookup
from v1lit.data.lengths.store import known_table, measured_table
from v1lit.data.lengths.table import LengthTable
from v1lit.data.loading.dataset import ShardDataset
from v1lit.data.loading.loader import TrainLoader
from v1lit.data.loading.ranks import Ranks
from v1lit.data.loading.reading import MicroBatchReader
from v1lit.data.loading.sequence import OpenedSequence, open_sequence
from v1lit.data.loading.skips import FILE, SkipList
from v1lit.data.loading.state import (
    ReadingState,
    difference,
    progress_from_dict,
    progress_to_dict,
    set_batches_done,
)
from v1lit.data.loading.trainer_limits import check_limits
from v1lit.data.loading.val_loader import ValLoader
from v1lit.data.sampling.epoch import Progress, StepLayout, steps_left
from v1lit.data.sampling.grouping import Grouping
from v1lit.data.shards.catalog import Catalog
from v1lit.data.sources.registry import (
    has_train,
    has_val,
    is_stream,
    prepare_source,
    train_sources,
    val_location,
)
from v1lit.data.streams.loader import MakeReader, StreamLoader, StreamValLoader
from v1lit.data.streams.source import PROMISES, StreamSource
from v1lit.data.streams.state import (
    StreamLayout,
    StreamProgress,
    StreamReading,
    stream_from_dict,
    stream_to_dict,
)


class V1DataModule(LightningDataModule):
    """Training and validation batches for one backbone.

    Batches are flat: examples one behind another in one row, without padding, a fixed number of them or, with
    `packing.length`, as many as fill the row. They are padded for backbones that cannot pack.

    Which examples make an optimizer step depends on the data, `seed`, epoch and the step's number of batches
    (ranks x accumulated ones) alone, not on how many ranks and workers share the work. Every example comes
    once per epoch, and every rank gets the same number of batches; see docs/streaming.md.
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
        stream: StreamConfig | None = None,
        map: str | dict[str, Any] | None = None,
        map_validation: bool = True,
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
        stream: how shards are read: order, cache, what bad examples may do.
        map: `module.name` of a function `Example -> Example | None`, or class_path and init_args of it or of
            a class, that changes examples before they are encoded, or leaves them out.
        map_validation: whether validation examples go through `map` as well.
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
        self.stream = stream or StreamConfig()
        self.map = None if map is None else ExampleMap(map, seed)
        self.map_validation = map_validation
        self.val_map = self.map if map_validation else None
        self.streams = StreamSource(self.source, self.stream, seed) if is_stream(self.source) else None
        self._prepared = False
        self._processor: Processor | None = None
        self._forget()
        self._skips = SkipList(self.stream)
        self._val_content: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What it was made with, as plain data: what a run that goes on is compared with."""
        configs = ("backbone", "source", "encoding", "packing", "stream")
        numbers = (
            "batch_size",
            "val_batch_size",
            "max_val_examples",
            "num_workers",
            "group_by_length",
            "seed",
        )
        return {
            **{name: asdict(getattr(self, name)) for name in configs},
            **{name: getattr(self, name) for name in numbers},
            "map": None if self.map is None else self.map.given,
            "map_validation": self.map_validation,
        }

    def _forget(self) -> None:
        """Be at the beginning."""
        self._train: OpenedSequence | None = None
        self._reading = ReadingState()
        self._stream_reading = StreamReading()
        self._start: tuple[int, Progress | StreamProgress] = (0, Progress())

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

    @property
    def train_sources(self) -> list[MixtureConfig]:
        """Where the training shards are."""
        return train_sources(self.source, self.stream.retry)

    @property
    def val_location(self) -> str:
        """Where the validation shards are, if there are any."""
        return val_location(self.source)

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
        """Changes when the validation shards do; None where there are none."""
        if self._val_content is None and self.has_val:
            if self.streams is not None and self.streams.val is not None:
                self._val_content = self.streams.val.names
            else:
                self._val_content = Catalog(self.val_location, self.stream).content[:16]
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

        What cannot be read is left out, and what the map leaves out. Raises ValueError and MapError.
        """
        own = self.val_map if split == "val" else self.map
        for number, (shard, example) in enumerate(self._readable(split)):
            mapped = example if own is None else own(example, shard, ExampleRef(number, 0, 0, number))
            if mapped is not None:
                yield mapped

    def _readable(self, split: str) -> Iterator[tuple[str, Example]]:
        """Examples with where they come from."""
        stream = self.streams and (self.streams.val if split == "val" else self.streams.train)
        if self.streams and stream:
            yield from self.streams.examples(stream, self.max_val_examples if split == "val" else None)
            return
        location = self.val_location if split == "val" else self.train_sources[0].shards
        for example in ShardDataset(
            location, shuffle=False, rank=0, world_size=1, on_bad="skip", config=self.stream
        ):
            yield location, example

    # ------------------------------------------------------------------ Lightning's hooks

    def prepare_data(self) -> None:
        """Make what the source makes, and measure lengths where rows need them; once per machine."""
        self._check_packing()
        if not self._prepared:
            prepare_source(self.source, self.stream.retry)
            if self.streams is None:
                self._tables(measure=True)
            else:
                _ = self.streams.train, self.streams.val  # told now where nothing matches
        self._prepared = True

    def setup(self, stage: str) -> None:
        """Begin a run: forget where an earlier one on this data module has come."""
        _refuse_changing_accumulation(self.trainer)
        self._forget()
        self._val_content = None
        folder = Path(self.trainer.default_root_dir) if self.trainer is not None else None
        own = self.trainer is not None and self.trainer.global_rank == 0
        self._skips = SkipList(self.stream, folder / FILE if folder is not None and own else None)
        if self.trainer is not None and self.has_train:
            self.check_limits(self.trainer)

    def check_limits(self, trainer: Trainer) -> None:
        """Check the Trainer's shares and intervals against the data; raises ValueError."""
        ranks, micro_batches = trainer.world_size, trainer.world_size * trainer.accumulate_grad_batches

        def train_batches() -> int | None:
            if self.streams is not None or self.grouping.packs or not self.opened.indexed:
                return None
            start, drop = Progress(layout=StepLayout(micro_batches, "")), self.stream.tail == "drop"
            steps = steps_left(self.opened.sequence, start, self.grouping.size, drop)
            return None if steps is None else steps * trainer.accumulate_grad_batches

        def val_batches() -> int | None:
            if self.streams is not None and self.streams.val is not None:
                return None
            positions = self._open_val().sequence.length if self.has_val else 0
            return None if positions is None else -(-positions // (self.val_batch_size * ranks))

        check_limits(trainer, train_batches, val_batches)

    def train_dataloader(self) -> TrainLoader | StreamLoader:
        """Flat or padded batches; how many (`len`) is not known where rows are filled, without an index, or
        of a stream."""
        self._check_packing()
        if self.streams is not None:
            return self._stream_loader(self.streams)
        opened = self.opened
        if not opened.indexed:
            without = ", ".join(one.location for one in opened.catalogs if not one.indexed)
            rank_zero_info(
                f"{without}: no index, so the length of an epoch and the remaining time are not known, every "
                "rank reads all shards, and resuming reads them again up to where the run stopped; "
                "`v1lit data index` makes one"
            )
        lengths = LengthLookup(opened.examples, self._tables(), self.processor, self.encoding, self.map)
        if self.grouping.packs and not lengths.known:
            random = self.map is not None and self.map.random
            once = (
                ", because data.map is random"
                if random
                else "; `v1lit data index --lengths RECIPE` measures them once, for an index on a local disk"
            )
            rank_zero_info(
                "lengths are measured while rows are planned, by the training process, which reads every "
                f"example for it{once}"
            )
        return TrainLoader(
            opened,
            MicroBatchReader(
                opened.examples, self.processor, self.encoding, self.stream, self.flat, self.map
            ),
            self.grouping,
            lengths,
            self.begin,
            self._skips,
            self.stream,
            self.trainer,
            self.num_workers,
        )

    def _stream_loader(self, source: StreamSource) -> StreamLoader:
        rank_zero_info(PROMISES)
        return StreamLoader(
            source.train,
            self._row_reader(self.map),
            self.grouping,
            partial(blank_batch, self.processor.pad_token_id, self.flat),
            self._begin_stream,
            self._skips,
            self.stream,
            self.trainer,
            self.num_workers,
        )

    def _row_reader(self, own: ExampleMap | None) -> MakeReader:
        """Makes the reader of some examples' rows."""
        return partial(
            MicroBatchReader,
            processor=self.processor,
            encoding=self.encoding,
            config=self.stream,
            flat=self.flat,
            map=own,
        )

    def val_dataloader(self) -> ValLoader | StreamValLoader | list[Any]:
        """Flat or padded batches of `val_batch_size` examples, in the order of the shards."""
        if not self.has_val:
            return []
        if self.streams is not None and self.streams.val is not None:
            return StreamValLoader(
                self.streams.val,
                self._row_reader(self.val_map),
                self.val_batch_size,
                self.max_val_examples,
                self._skips,
                self.trainer,
                min(self.num_workers, 1),
            )
        opened = self._open_val()
        self._val_content = opened.catalogs[0].content[:16]
        reader = MicroBatchReader(
            opened.examples, self.processor, self.encoding, self.stream, self.flat, self.val_map
        )
        # Not forked while a thread of the training loader, where there is one, fetches remote shards.
        fetching = self._train is not None and self._train.remote
        workers = 0 if fetching else min(self.num_workers, 1)
        return ValLoader(opened, reader, self.val_batch_size, self._skips, self.trainer, workers)

    def _open_val(self) -> OpenedSequence:
        source = MixtureConfig(self.val_location, limit=self.max_val_examples)
        return open_sequence([source], replace(self.stream, lanes=1), shuffle=False, count=True)

    def teardown(self, stage: str) -> None:
        """Sum up what could not be used."""
        if self._skips.count:
            rank_zero_info(self._skips.summary())
        if self._skips.left_out:
            left_out, total = self._skips.left_out, self._skips.read + self._skips.left_out
            rank_zero_info(f"data.map left out {left_out} of {total} examples")

    def _tables(self, measure: bool = False) -> list[LengthTable | None]:
        """Lengths of the examples of every source, as far as rows need them and they are known."""
        measured = self.grouping.packs or self.grouping.by_length > 1
        if not measured or (self.map is not None and self.map.random):
            return [None] * len(self.opened.catalogs)
        make = measured_table if measure else known_table
        return [make(catalog, self.processor, self.encoding, self.map) for catalog in self.opened.catalogs]

    def _check_packing(self) -> None:
        if self.packing.length is not None and not self.flat:
            raise ValueError(
                f"data.packing.length is {self.packing.length}, but the backbone {self.backbone.name!r} "
                "cannot keep the examples of a row apart; set data.packing.length=null, and "
                "data.group_by_length=16 or so to pad little"
            )

    # ------------------------------------------------------------------ resuming

    def begin(self, current_epoch: int, layout: StepLayout) -> Progress:
        """Where the loader begins an epoch."""
        positions = self.opened.sequence.length
        return self._reading.begin(current_epoch, layout, positions, self._ranks.size, self._rank)

    def _begin_stream(self, current_epoch: int, layout: StreamLayout) -> StreamProgress:
        """The same of a stream."""
        assert self.streams is not None
        epoch = self._stream_reading.epoch(current_epoch)
        order = self.streams.order(0 if getattr(self.trainer, "overfit_batches", 0) > 0 else epoch)
        return self._stream_reading.begin(current_epoch, layout, order, self._rank)

    def planned_steps(self, epochs: int) -> int | None:
        """Optimizer steps of a run of so many epochs, also those before the checkpoint that it goes on from.

        None where that is not known. To be called on all ranks, the first time.
        """
        assert self.trainer is not None
        loader, (done, progress) = self.trainer.train_dataloader, self._start
        if not isinstance(loader, TrainLoader) or not isinstance(progress, Progress):
            return None
        left = loader.planned_steps(progress, epochs)
        return None if left is None else done + left

    def consumed(self, batch: Batch) -> None:
        """Note that training has used this batch; a checkpoint then says where to go on."""
        if batch.read is not None:
            reading = self._reading if self.streams is None else self._stream_reading
            # Which batch of an epoch is its last is known to Lightning alone, which may end epochs early.
            reading.used(batch.read, self.trainer is not None and self.trainer.is_last_batch)

    def state_dict(self) -> dict[str, Any]:
        """How far all ranks have read, a few kilobytes for each. To be called on every rank."""
        progress: Progress | StreamProgress | None
        if self.streams is None:
            progress = self._reading.of_all(self._ranks)
        else:
            progress = self._stream_reading.of_all(self._ranks)
        if progress is None:
            return {}
        return {
            **(progress_to_dict(progress) if isinstance(progress, Progress) else stream_to_dict(progress)),
            "data": self._identity,
            "examples_read": self._skips.read,
            "left_out": self._skips.left_out,
            "skipped": dict(self._skips.kinds(progress.epoch, progress.steps)),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state was saved, also on another number of ranks or workers.

        Raises ValueError if training data are being read already, or are others than those of the checkpoint.
        """
        if not state_dict:
            return
        if self._reading.begun or self._stream_reading.begun:
            raise ValueError(
                "the trainer read training data before it loaded the checkpoint, to estimate the number of "
                "steps; set trainer.max_steps, and trainer.max_epochs=-1"
            )
        self._refuse_other_order(state_dict)
        progress = self._progress_of(state_dict)
        self._skips.resume(
            progress.epoch,
            progress.steps,
            int(state_dict["examples_read"]),
            state_dict["skipped"],
            int(state_dict.get("left_out", 0)),
        )
        if isinstance(progress, Progress):
            self._reading.resume(progress)
        else:
            self._stream_reading.resume(progress)

    def _progress_of(self, state: Mapping[str, Any]) -> Progress | StreamProgress:
        """How far a checkpoint has come; one of the other kind of source was made between two epochs."""
        epoch = int(state["epoch"])
        if self.streams is None:
            return progress_from_dict(state) if "slots" in state else Progress(epoch)
        return stream_from_dict(state) if "readers" in state else StreamProgress(epoch)

    @property
    def _identity(self) -> dict[str, Any]:
        """What decides the order of the training examples."""
        return self.opened.identity if self.streams is None else self.streams.identity

    def amid_epoch(self, checkpoint: Mapping[str, Any]) -> bool:
        """Whether a checkpoint was written between two steps of an epoch."""
        return bool(checkpoint.get(type(self).__qualname__, {}).get("steps"))

    def refuse_other_order(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise ValueError if the examples of the checkpoint's epoch come in another order now."""
        self._refuse_other_order(checkpoint.get(type(self).__qualname__, {}))

    def _refuse_other_order(self, state: Mapping[str, Any]) -> None:
        other = difference(state["data"], self._identity) if state.get("steps") else None
        if other is not None:
            raise ValueError(
                f"the checkpoint was made in the middle of an epoch of other data; {other}\n"
                "its order cannot be gone on with: take the same data and options, or begin a new run"
            )

    def align(self, checkpoint: dict[str, Any]) -> None:
        """Let Lightning count the batches of the epoch as they are laid out now.

        It counts the batches of a rank, which differ where a run goes on with other ranks or accumulation, or
        from a checkpoint that was saved amid the batches of a step. To be called in the module's
        `on_load_checkpoint`; V1Module does.
        """
        state = checkpoint.get(type(self).__qualname__)  # which is loaded after the module
        progress = self._progress_of(state) if state else Progress()
        self._start = int(checkpoint["global_step"]), progress
        if progress.layout is None:  # between two epochs
            return
        if isinstance(progress, StreamProgress):
            assert self.trainer is not None
            set_batches_done(checkpoint, progress.steps * self.trainer.accumulate_grad_batches)
            return
        loader = self.train_dataloader()
        assert isinstance(loader, TrainLoader)
        progress = progress.divided(loader.layout, self.opened.sequence.length)
        set_batches_done(checkpoint, loader.batches_done(progress))

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def _ranks(self) -> Ranks:
        return Ranks.of(1 if self.trainer is None else self.trainer.world_size)


def _refuse_changing_accumulation(trainer: Trainer | None) -> None:
    """What makes an optimizer step is planned for a whole run; Lightning, too, counts its batches once."""
    for callback in [] if trainer is None else trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            raise ValueError(
                "trainer.callbacks has a GradientAccumulationScheduler, but data are planned for one number "
                "of batches per optimizer step; set trainer.accumulate_grad_batches, and go on from a "
                "checkpoint with another number where it shall change"
            )


def _check_lengths(packing: PackingConfig, encoding: EncodingConfig) -> None:
    length, longest = packing.length, encoding.max_tokens
    if length is not None and longest > length:
        raise ValueError(
            f"data.encoding.max_tokens is {longest}, but data.packing.length is {length}: an example may be "
            f"{longest - length} tokens longer than a row; set data.encoding.max_tokens={length} or less, or "
            f"data.packing.length={longest} or more"
        )
