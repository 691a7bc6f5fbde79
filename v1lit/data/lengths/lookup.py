"""`LengthLookup`: how long an example is, from a table or by reading it."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.data.encode.encoding import EncodingError
from v1lit.data.errors import ShardError
from v1lit.data.example.reference import ExampleRef
from v1lit.data.images import ImageError
from v1lit.data.lengths.length import LEFT_OUT, UNUSABLE, Length, LengthOptions
from v1lit.data.lengths.table import LengthTable
from v1lit.data.shards.examples import Examples, Readable


class LengthLookup:
    """How long the examples of some sources are once encoded: from a table, or read and measured.

    Args:
        examples: those of all sources.
        tables: one for each source, None where it has none.
        options: decide lengths where there is no table.
    """

    def __init__(
        self, examples: Examples, tables: Sequence[LengthTable | None], options: LengthOptions
    ) -> None:
        self.examples, self.tables, self.options = examples, tables, options
        self._starts = [catalog.starts() for catalog in examples.catalogs]

    @property
    def known(self) -> bool:
        """Whether no example has to be read for its length."""
        return all(table is not None for table in self.tables)

    def __call__(self, ref: ExampleRef) -> Length | None:
        """Length of one example; None where the map leaves it out. Raises MapError."""
        table = self.tables[ref.source]
        if table is None:
            return measure_at(ref, self.examples, self.options)
        place = int(self._starts[ref.source][ref.shard]) + ref.index
        tokens, image_tokens, images = table.tokens[place], table.image_tokens[place], table.images[place]
        return None if tokens == LEFT_OUT else Length(int(tokens), int(image_tokens), int(images))


def measure_at(ref: ExampleRef, examples: Readable, options: LengthOptions) -> Length | None:
    """How long one example is, by reading it; None where the map leaves it out. Raises MapError."""
    try:
        example = examples.use(ref, lambda shard: shard.example(ref.index))
        return options.measure(example, examples.file(ref), ref)
    except (ShardError, EncodingError, ImageError):
        return UNUSABLE
