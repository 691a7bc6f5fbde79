"""Rows of a plan -> batches: read, check, decode and encode the examples that a row names; in the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from torch.utils.data import Dataset

from v1lit.backbones.processor import Processor
from v1lit.data.batch import Batch, blank_batch, collate, flatten
from v1lit.data.catalog import Catalog, OpenShards
from v1lit.data.config import EncodingConfig, StreamConfig
from v1lit.data.encoding import Encoded, EncodingError, encode
from v1lit.data.example import Example
from v1lit.data.failures import Failure
from v1lit.data.images import ImageError
from v1lit.data.lengths import LEFT_OUT, Length, LengthTable, measure
from v1lit.data.mapping import ExampleMap
from v1lit.data.plan.slots import Place, Row
from v1lit.data.shards import Shard, ShardError
from v1lit.data.time_limit import TookTooLongError, time_limit

T = TypeVar("T")

UNUSABLE = Length(1, 0, 0)
"""Of an example that cannot be read: it is planned, and skipped when its turn comes."""


@dataclass(frozen=True)
class Made:
    """What became of a row."""

    batch: Batch
    failures: tuple[Failure | None, ...]
    """Those of the row that fit no row; then one per example of the row, in its order, None for those in the
    batch and those that the map leaves out."""
    left_out: int = 0
    """Examples that the map leaves out."""
    row: Row | None = None
    """Which row it is; None for a blank batch behind a rank's last one."""

    @property
    def filled(self) -> bool:
        """Whether there were examples in it; the map may have left out all, and found that when planning."""
        return len(self.batch) > 0 or bool(self.failures) or bool(self.row is not None and self.row.places)

    def pin_memory(self) -> Made:
        """The same with the batch in page-locked memory."""
        return replace(self, batch=self.batch.pin_memory())


class Examples:
    """The examples of several sources, read in any order. Sent to other processes, it opens files there."""

    def __init__(self, catalogs: Sequence[Catalog]) -> None:
        self.catalogs = list(catalogs)
        self._open = OpenShards(self.catalogs)

    def read(self, place: Place) -> Example:
        """One example. Raises ShardError."""
        return self.use(place, lambda shard: shard.example(place.number))

    def use(self, place: Place, action: Callable[[Opened], T]) -> T:
        """Do something with the open shard of a place; once more where a new copy of it may help.

        Raises:
            ShardError: the shard cannot be opened, or as the action raises.
        """
        shard = self.shard(place.source, place.shard)
        try:
            return action(shard)
        except ShardError as error:
            if not self._open.renew(place.source, place.shard, error):
                raise
        return action(self.shard(place.source, place.shard))

    def shard(self, source: int, shard: int) -> Shard:
        """A shard of a source, open. Raises ShardError."""
        return self._open.get(source, shard)

    def key(self, place: Place) -> str | None:
        """Name of an example, as far as it can be read."""
        try:
            return self._open.get(place.source, place.shard).key(place.number)
        except ShardError:
            return None

    def file(self, place: Place) -> str:
        """Location of the shard that an example is in."""
        return self.catalogs[place.source].files[place.shard]

    def __getstate__(self) -> list[Catalog]:
        return self.catalogs

    def __setstate__(self, catalogs: list[Catalog]) -> None:
        self.__init__(catalogs)  # type: ignore[misc]


class Opened(Protocol):
    """A shard as far as reading examples needs it."""

    @property
    def name(self) -> str: ...

    def example(self, number: int) -> Example:
        """One example. Raises ShardError."""


class Readable(Protocol):
    """Examples that can be read by their place."""

    def use(self, place: Place, action: Callable[[Opened], T]) -> T:
        """Do something with the open shard of a place. Raises ShardError."""

    def read(self, place: Place) -> Example:
        """One example. Raises ShardError."""

    def key(self, place: Place) -> str | None:
        """Name of an example, as far as it can be read."""

    def file(self, place: Place) -> str:
        """Location of the shard that an example is in."""


class RowReader(Dataset[Made]):
    """Makes the batch of a row; what cannot be used is left out, with its reason."""

    def __init__(
        self,
        examples: Readable,
        processor: Processor,
        encoding: EncodingConfig,
        config: StreamConfig,
        flat: bool,
        map: ExampleMap | None = None,
    ) -> None:
        self.examples, self.processor, self.encoding, self.config = examples, processor, encoding, config
        self.make_batch = batch_maker(processor, flat)
        self.flat, self.map = flat, map

    def __getitem__(self, row: Row) -> Made:
        refused = [self._failure(one.place, "length", one.reason) for one in row.refused]
        made = [self._encoded(place) for place in row.places]
        encoded = [one for one in made if isinstance(one, Encoded)]
        batch = self.make_batch(encoded) if encoded else self.blank()
        failures = (*refused, *(one if isinstance(one, Failure) else None for one in made))
        return Made(batch, failures, row.left_out + sum(one is None for one in made))

    def blank(self) -> Batch:
        """A batch without examples, for a rank that has none left while others have."""
        return blank_batch(self.processor.pad_token_id, self.flat)

    def _encoded(self, place: Place) -> Encoded | Failure | None:
        """None where the map leaves the example out."""
        try:
            # The clock runs when the shard is open: it may have to be fetched, which has limits of its own.
            return self.examples.use(place, partial(self._read, place))
        except ShardError as error:
            return Failure(place, error.shard, error.key, error.kind, error.reason)
        except ImageError as error:
            return self._failure(place, "image", str(error))
        except EncodingError as error:
            return self._failure(place, "length", str(error))
        except TookTooLongError:
            return self._failure(
                place, "slow", f"took longer than data.stream.max_seconds={self.config.max_seconds:g}"
            )

    def _read(self, place: Place, shard: Opened) -> Encoded | None:
        with time_limit(self.config.max_seconds):
            example: Example | None = shard.example(place.number)
            if example is not None and self.map is not None:
                example = self.map(example, shard.name, place)
            return None if example is None else encode(example, self.processor, self.encoding)

    def _failure(self, place: Place, kind: str, reason: str) -> Failure:
        return Failure(place, self.examples.file(place), self.examples.key(place), kind, reason)


class Lengths:
    """How long the examples of some sources are once encoded: from a table, or read and measured."""

    def __init__(
        self,
        examples: Examples,
        tables: Sequence[LengthTable | None],
        processor: Processor,
        encoding: EncodingConfig,
        map: ExampleMap | None = None,
    ) -> None:
        self.examples, self.tables, self.processor, self.encoding = examples, tables, processor, encoding
        self.map = map
        self._starts = [catalog.starts() for catalog in examples.catalogs]

    @property
    def known(self) -> bool:
        """Whether no example has to be read for its length."""
        return all(table is not None for table in self.tables)

    def __call__(self, place: Place) -> Length | None:
        """Of one example; None where the map leaves it out. Raises MapError."""
        table = self.tables[place.source]
        if table is not None:
            number = int(self._starts[place.source][place.shard]) + place.number
            columns = (table.tokens, table.image_tokens, table.images)
            length = Length(*(int(column[number]) for column in columns))
            return None if length.tokens == LEFT_OUT else length
        return measure_at(place, self.examples, self.processor, self.encoding, self.map)


def measure_at(
    place: Place,
    examples: Readable,
    processor: Processor,
    encoding: EncodingConfig,
    map: ExampleMap | None = None,
) -> Length | None:
    """How long one example is, by reading it; None where the map leaves it out. Raises MapError."""
    try:
        example: Example | None = examples.read(place)
        if example is not None and map is not None:
            example = map(example, examples.file(place), place)
        return None if example is None else measure(example, processor, encoding)
    except (ShardError, EncodingError, ImageError):
        return UNUSABLE


def batch_maker(processor: Processor, flat: bool) -> Callable[[Sequence[Encoded]], Batch]:
    """Makes a flat or a padded batch of examples, labels counted."""
    start = processor.pointer_start
    if flat:
        return partial(flatten, pointer_start=start)
    return partial(collate, pad_id=processor.pad_token_id, pointer_start=start)
