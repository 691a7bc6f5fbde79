"""Processes that compute the same batches together count as one rank of the data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.forked import needs_fork
from helpers.gloo_ranks import on_ranks

from v1lit.data.loading.ranks import Ranks

pytestmark = needs_fork


def ranks_of(rank: int, world: int, readers: int) -> Ranks:
    told = {"num_replicas": readers, "rank": rank * readers // world}
    trainer: Any = SimpleNamespace(
        world_size=world, global_rank=rank, strategy=SimpleNamespace(distributed_sampler_kwargs=told)
    )
    return Ranks.of(trainer)


def exchange(rank: int) -> Any:
    ranks = ranks_of(rank, 4, 2)
    own = torch.tensor([1 + ranks.own, 10])
    sums = [
        ranks.add_up(own.clone()),
        ranks.add_up_processes(own.clone()),
        ranks.largest(torch.tensor([rank])),
    ]
    return (
        ranks.size,
        ranks.own,
        ranks.alike,
        [table.tolist() for table in sums],
        ranks.gather(rank),
        ranks.gather_processes(rank),
    )


def test_sums_count_them_once_and_agreements_ask_all(tmp_path: Path) -> None:
    for rank, found in enumerate(on_ranks(4, tmp_path, exchange)):
        assert found == (2, rank // 2, 2, [[3, 20], [6, 40], [3]], [0, 2], [0, 1, 2, 3])


def differ(rank: int) -> str:
    with pytest.raises(RuntimeError) as caught:
        ranks_of(rank, 2, 1).add_up(torch.tensor([rank]))
    return str(caught.value)


def test_different_batches_are_refused_on_all_of_them_before_they_meet_in_a_layer(tmp_path: Path) -> None:
    for reason in on_ranks(2, tmp_path, differ):
        assert "have read different ones" in reason
