"""Rows of a plan -> batches: read, check, decode and encode the examples that a row names; in the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from torch.utils.data import Dataset

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig, StreamConfig
from v1lit.data.encode.batch import Batch, blank_batch, collate, flatten
from v1lit.data.encode.encoding import Encoded, EncodingError, encode
from v1lit.data.encode.mapping import ExampleMap
from v1lit.data.errors import ShardError
from v1lit.data.example import Example, ExampleRef
from v1lit.data.example.images import ImageError
from v1lit.data.loading.failures import Failure
from v1lit.data.loading.time_limit import TookTooLongError, time_limit
from v1lit.data.sampling.rows import MicroBatchPlan
from v1lit.data.shards.examples import Opened, Readable

T = TypeVar("T")


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

    def pin_memory(self) -> MicroBatch:
        """The same with the batch in page-locked memory."""
        return replace(self, batch=self.batch.pin_memory())


class MicroBatchReader(Dataset[MicroBatch]):
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

    def __getitem__(self, row: MicroBatchPlan) -> MicroBatch:
        refused = [self._failure(one.ref, "length", one.reason) for one in row.refused]
        made = [self._encoded(ref) for ref in row.refs]
        encoded = [one for one in made if isinstance(one, Encoded)]
        batch = self.make_batch(encoded) if encoded else self.blank()
        failures = (*refused, *(one if isinstance(one, Failure) else None for one in made))
        return MicroBatch(batch, failures, row.left_out + sum(one is None for one in made))

    def blank(self) -> Batch:
        """A batch without examples, for a rank that has none left while others have."""
        return blank_batch(self.processor.pad_token_id, self.flat)

    def _encoded(self, ref: ExampleRef) -> Encoded | Failure | None:
        """None where the map leaves the example out."""
        try:
            # The clock runs when the shard is open: it may have to be fetched, which has limits of its own.
            return self.examples.use(ref, partial(self._read, ref))
        except ShardError as error:
            return Failure(ref, error.shard, error.key, error.kind, error.reason)
        except ImageError as error:
            return self._failure(ref, "image", str(error))
        except EncodingError as error:
            return self._failure(ref, "length", str(error))
        except TookTooLongError:
            return self._failure(
                ref, "slow", f"took longer than data.stream.max_seconds={self.config.max_seconds:g}"
            )

    def _read(self, ref: ExampleRef, shard: Opened) -> Encoded | None:
        with time_limit(self.config.max_seconds):
            example: Example | None = shard.example(ref.index)
            if example is not None and self.map is not None:
                example = self.map(example, shard.name, ref)
            return None if example is None else encode(example, self.processor, self.encoding)

    def _failure(self, ref: ExampleRef, kind: str, reason: str) -> Failure:
        return Failure(ref, self.examples.file(ref), self.examples.key(ref), kind, reason)


def batch_maker(processor: Processor, flat: bool) -> Callable[[Sequence[Encoded]], Batch]:
    """Makes a flat or a padded batch of examples, labels counted."""
    start = processor.pointer_start
    if flat:
        return partial(flatten, pointer_start=start)
    return partial(collate, pad_id=processor.pad_token_id, pointer_start=start)
