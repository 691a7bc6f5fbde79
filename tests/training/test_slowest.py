"""The slowest rank of an interval is the one that took longest by itself; who lacks data is said once."""

from __future__ import annotations

import torch
from lightning.pytorch.profilers import PassThroughProfiler

from v1lit.training.slowest import SHARE, SHORTEST, DataWaits, Slowest
from v1lit.training.throughput import FETCH, OTHERS, Stopwatch


def test_the_slowest_rank_is_the_one_with_most_data_wait_and_forward_together() -> None:
    own = torch.tensor([[1.0, 5.0], [3.0, 4.5], [0.0, 6.0]])
    slowest = Slowest.of(own, 10.0)
    assert slowest.rank == 1
    assert slowest.lag == (7.5 - 6.5) / 10
    assert slowest.data_wait == 3.0 / 10


def test_a_rank_that_waits_for_its_data_is_named_once_until_it_no_longer_does() -> None:
    waits = DataWaits(["a", "b", "c"])
    much, little = torch.tensor([0.0, 40.0, 5.0]), torch.tensor([0.0, 100 * SHARE, 5.0])
    said = [waits.line(one, 100.0) for one in (little, much, much, little, much)]
    text = (
        "rank 1 (b) has waited for its own data 40% of the last 100 s, and the others for it; "
        "the ranks' mean is 15%"
    )
    assert said == [None, text, None, None, text]
    other = waits.line(torch.tensor([50.0, 0.0, 0.0]), 100.0)
    assert other is not None
    assert other.startswith("rank 0 (a)")


def test_nothing_is_said_of_short_intervals_and_of_one_rank() -> None:
    much = torch.tensor([SHORTEST, 0.0])
    assert DataWaits(["a", "b"]).line(much, SHORTEST - 1) is None
    assert DataWaits(["a"]).line(much[:1], 100.0) is None


def test_waiting_for_other_ranks_inside_a_fetch_is_told_from_waiting_for_data() -> None:
    watch = Stopwatch(PassThroughProfiler())
    watch.waiting.seconds = 7.0  # before, and elsewhere
    with watch.profile(f"[_TrainingEpochLoop].{FETCH}"):
        watch.waiting.seconds += 2.0
    watch.waiting.seconds += 1.0
    assert watch.seconds[OTHERS] == 2.0
