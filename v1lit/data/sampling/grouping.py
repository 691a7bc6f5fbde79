"""`Grouping`: which examples make a batch."""

from __future__ import annotations

from dataclasses import dataclass

from v1lit.data.config import PackingConfig
from v1lit.data.sampling.epoch import MakeRows
from v1lit.data.sampling.rows import Measure, counted_rows, filled_rows, similar_rows


@dataclass(frozen=True)
class Grouping:
    """Which examples make a batch."""

    size: int
    """Examples per batch, where rows are not filled."""
    packing: PackingConfig | None = None
    """Fill rows instead of counting examples, where it has a length."""
    by_length: int = 1
    """Batches to look ahead when similar lengths are put together; 1 leaves the order as it is."""
    seed: int = 0
    """Of the order of batches of similar length."""

    @property
    def packs(self) -> bool:
        return self.packing is not None and self.packing.length is not None

    def __str__(self) -> str:
        if self.packs:
            return str(self.packing)
        return f"{self.size} examples" + (f", similar of {self.by_length}" if self.by_length > 1 else "")

    def make_rows(self, measure: Measure) -> MakeRows:
        """How a micro-batch's examples make rows."""
        packing = self.packing
        if packing is not None and self.packs:
            return lambda stream, state: filled_rows(stream, state, packing, measure)
        if self.by_length > 1:
            return lambda stream, state: similar_rows(
                stream, state, self.size, self.by_length, measure, self.seed
            )
        return lambda stream, state: counted_rows(stream, state, self.size)
