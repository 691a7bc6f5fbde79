"""Why examples could not be used, as those tell it who read or plan them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from v1lit.data.errors import ShardError
from v1lit.data.example import ExampleRef
from v1lit.data.loading.skips import Skipped

NOWHERE = ExampleRef(-1, -1, -1, -1)
"""Of a whole shard whose examples were never counted."""


@dataclass(frozen=True)
class Failure:
    """Why an example could not be used."""

    ref: ExampleRef
    shard: str
    key: str | None
    kind: str
    reason: str


def run_of_failures(failures: Sequence[Failure | None], before: int) -> tuple[int, int]:
    """How many failures in a row there are at the end, `before` those before them, and at most."""
    longest = run = before
    for failure in failures:
        run = 0 if failure is None else run + 1
        longest = max(longest, run)
    return run, longest


def skipped_of(failures: Sequence[Failure | None], split: str, epoch: int, step: int) -> list[Skipped]:
    """Failures as they are listed."""
    return [
        Skipped(
            split=split,
            epoch=epoch,
            step=step,
            position=one.ref.epoch_index,
            shard=one.shard,
            key=one.key,
            number=one.ref.index,
            kind=one.kind,
            reason=one.reason,
        )
        for one in failures
        if one is not None
    ]


def lost_shards(lost: Sequence[ShardError], rank: int) -> list[Failure]:
    """Whole shards that cannot be used; none but on rank 0, because every rank finds the same."""
    return [Failure(NOWHERE, one.shard, one.key, one.kind, one.reason) for one in lost if rank == 0]
