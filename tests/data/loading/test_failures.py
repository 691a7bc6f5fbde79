"""What a loader's batches say of the data is noted once, the same on all ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from v1lit.data.config import StreamConfig
from v1lit.data.encode.batch import blank_batch
from v1lit.data.errors import ShardError
from v1lit.data.example import ExampleRef
from v1lit.data.loading.context import LoaderContext
from v1lit.data.loading.failures import FailureLog, run_of_failures
from v1lit.data.loading.micro_batch import Failure, MicroBatch
from v1lit.data.loading.skips import SkipList
from v1lit.data.loading.step import StepBatches

BAD = Failure(ExampleRef(7, 0, 1, 3), "shard", "key", "image", "why")


class Twin:
    """Two ranks that have the same."""

    own = 0

    def gather(self, own: Any) -> list[Any]:
        return [own, own]


def log_of(ranks: Any = None, lost: list[ShardError] | None = None, own: int = 0) -> FailureLog:
    context = LoaderContext(StreamConfig(), SkipList(StreamConfig()))
    if ranks is not None:
        context.__dict__["ranks"] = ranks
    return FailureLog(context, "train", lost)


def micro_batch(*failures: Failure | None, left_out: int = 0) -> MicroBatch:
    return MicroBatch(blank_batch(0, True), failures, left_out)


@pytest.mark.parametrize(
    ("failures", "before", "end", "longest"),
    [("", 2, 2, 2), ("x", 2, 3, 3), (".", 2, 0, 2), ("xx.x", 0, 1, 2), (".xxx", 1, 3, 3)],
)
def test_failures_in_a_row_are_counted_across_batches(
    failures: str, before: int, end: int, longest: int
) -> None:
    assert run_of_failures([BAD if one == "x" else None for one in failures], before) == (end, longest)


def test_all_ranks_note_what_each_of_them_has() -> None:
    log = log_of(Twin())
    log.note([micro_batch(BAD, None, left_out=1)], epoch=2, index=5)
    assert (log.skips.read, log.skips.left_out, log.skips.count) == (2, 2, 2)
    skip = log.skips.skipped[0]
    assert (skip.split, skip.epoch, skip.step, skip.position, skip.number) == ("train", 2, 5, 7, 3)


def test_a_step_without_failures_is_noted_without_talking() -> None:
    log = log_of(SimpleNamespace(own=0))  # which cannot gather
    log.note_step(StepBatches([micro_batch(None)], [], 4, 0, 3), epoch=0, index=0)
    assert (log.skips.read, log.skips.left_out, log.skips.count) == (4, 3, 0)


@pytest.mark.parametrize("own", [0, 1])
def test_a_lost_shard_is_told_once_and_by_the_first_rank_alone(own: int) -> None:
    lost = [ShardError("shard", None, "shard", "why")]
    log = log_of(SimpleNamespace(own=own), lost)
    first = log.with_lost(micro_batch(BAD))
    assert len(first.failures) == (2 if own == 0 else 1)
    assert first.failures[-1] is BAD
    assert lost == []
    assert log.with_lost(micro_batch(BAD)).failures == (BAD,)
