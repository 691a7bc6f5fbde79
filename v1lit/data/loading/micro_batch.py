"""`MicroBatch` and `Failure`: what became of the examples of a row."""

from __future__ import annotations

from dataclasses import dataclass, replace

from v1lit.data.encode.batch import Batch
from v1lit.data.example import ExampleRef
from v1lit.data.sampling.rows import MicroBatchPlan


@dataclass(frozen=True)
class Failure:
    """Why an example could not be used."""

    ref: ExampleRef
    shard: str
    key: str | None
    kind: str
    reason: str


@dataclass(frozen=True)
class MicroBatch:
    """What became of a row."""

    batch: Batch
    failures: tuple[Failure | None, ...]
    """Those of the row that fit no row; then one per example of the row, in its order, None for those in the
    batch and those that the map leaves out."""
    left_out: int = 0
    """Examples that the map leaves out."""
    row: MicroBatchPlan | None = None
    """Which row it is; None for a blank batch behind a rank's last one."""

    @property
    def filled(self) -> bool:
        """Whether there were examples in it; the map may have left out all, and found that when planning."""
        return len(self.batch) > 0 or bool(self.failures) or bool(self.row is not None and self.row.refs)

    @property
    def reached(self) -> object:
        """How far its micro-batch of the step has come with it; None for a blank batch."""
        return None if self.row is None else self.row.after

    def pin_memory(self) -> MicroBatch:
        """The same with the batch in page-locked memory."""
        return replace(self, batch=self.batch.pin_memory())
