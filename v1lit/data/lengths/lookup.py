"""`LengthLookup`: how long an example is, from a table or by reading it."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import EncodingError
from v1lit.data.encode.mapping import ExampleMap
from v1lit.data.errors import ShardError
from v1lit.data.example.images import ImageError
from v1lit.data.example.reference import ExampleRef
from v1lit.data.lengths.length import LEFT_OUT, UNUSABLE, Length, measure_mapped
from v1lit.data.lengths.table import LengthTable
from v1lit.data.shards.examples import Examples, Readable


class LengthLookup:
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

    def __call__(self, ref: ExampleRef) -> Length | None:
        """Of one example; None where the map leaves it out. Raises MapError."""
        table = self.tables[ref.source]
        if table is not None:
            number = int(self._starts[ref.source][ref.shard]) + ref.index
            columns = (table.tokens, table.image_tokens, table.images)
            length = Length(*(int(column[number]) for column in columns))
            return None if length.tokens == LEFT_OUT else length
        return measure_at(ref, self.examples, self.processor, self.encoding, self.map)


def measure_at(
    ref: ExampleRef,
    examples: Readable,
    processor: Processor,
    encoding: EncodingConfig,
    map: ExampleMap | None = None,
) -> Length | None:
    """How long one example is, by reading it; None where the map leaves it out. Raises MapError."""
    try:
        return measure_mapped(examples.read(ref), examples.file(ref), processor, encoding, map, ref)
    except (ShardError, EncodingError, ImageError):
        return UNUSABLE
