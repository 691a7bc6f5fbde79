"""Rows of a plan -> batches: read, check, decode and encode the examples that a row names; in the workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch.utils.data import Dataset

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig, StreamConfig
from v1lit.data.encode.batch import Batch, blank_batch, collate, flatten
from v1lit.data.encode.encoding import Encoded, EncodingError, encode
from v1lit.data.encode.mapping import ExampleMap
from v1lit.data.errors import ShardError
from v1lit.data.example import Example, ExampleRef
from v1lit.data.images import ImageError
from v1lit.data.lengths.length import LengthOptions
from v1lit.data.loading.micro_batch import Failure, MicroBatch
from v1lit.data.loading.time_limit import TookTooLongError, time_limit
from v1lit.data.sampling.rows import MicroBatchPlan
from v1lit.data.shards.examples import OpenShard, Readable


@dataclass(frozen=True)
class Encoder:
    """How examples become batches."""

    processor: Processor
    encoding: EncodingConfig
    stream: StreamConfig
    """How long one example may take."""
    flat: bool
    """Whether batches are flat, or else padded."""
    map: ExampleMap | None = None
    """Changes examples before they are encoded, or leaves them out."""

    @property
    def length_options(self) -> LengthOptions:
        """What decides how long the examples are."""
        return LengthOptions(self.processor, self.encoding, self.map)

    def batch(self, examples: Sequence[Encoded]) -> Batch:
        """A flat or a padded batch, labels counted."""
        if self.flat:
            return flatten(examples, self.processor.pointer_start)
        pad_id, start = self.processor.pad_token_id, self.processor.pointer_start
        return collate(examples, pad_id, pointer_start=start)

    def blank(self) -> Batch:
        """A batch without examples, for a rank that has none left while others have."""
        return blank_batch(self.processor.pad_token_id, self.flat)


class MicroBatchReader(Dataset[MicroBatch]):
    """Makes the batch of a row; what cannot be used is left out, with its reason."""

    def __init__(self, examples: Readable, encoder: Encoder) -> None:
        self.examples, self.encoder = examples, encoder

    def __getitem__(self, row: MicroBatchPlan) -> MicroBatch:
        refused = [self._failure(unfit.ref, "length", unfit.reason) for unfit in row.refused]
        results = [self._encoded(ref) for ref in row.refs]
        usable = [(r, ref.source) for r, ref in zip(results, row.refs, strict=True) if isinstance(r, Encoded)]
        batch = self.encoder.blank()
        if usable:
            encoded, sources = zip(*usable, strict=True)
            batch = replace(self.encoder.batch(encoded), sources=sources)
        failures = (*refused, *(result if isinstance(result, Failure) else None for result in results))
        return MicroBatch(batch, failures, row.left_out + sum(result is None for result in results))

    def _encoded(self, ref: ExampleRef) -> Encoded | Failure | None:
        """Returns None where the map leaves the example out."""
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
            limit = self.encoder.stream.max_seconds
            return self._failure(ref, "slow", f"took longer than data.stream.max_seconds={limit:g}")

    def _read(self, ref: ExampleRef, shard: OpenShard) -> Encoded | None:
        with time_limit(self.encoder.stream.max_seconds):
            example: Example | None = shard.example(ref.index)
            if example is not None and self.encoder.map is not None:
                example = self.encoder.map(example, shard.name, ref)
            if example is None:
                return None
            return encode(example, self.encoder.processor, self.encoder.encoding)

    def _failure(self, ref: ExampleRef, kind: str, reason: str) -> Failure:
        return Failure(ref, self.examples.file(ref), self.examples.key(ref), kind, reason)
