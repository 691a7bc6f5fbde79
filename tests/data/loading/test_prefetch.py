"""Remote shards are brought into the cache before they are read, and nothing that fails there fails a run."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.faulty_server import FaultyServer, hang_up
from helpers.tiny_runs import fit, make_data, names, written

from v1lit.data.config import MixtureConfig, StreamConfig
from v1lit.data.loading.prefetch import ShardPrefetcher
from v1lit.data.loading.sequence import OpenedSequence, open_sequence
from v1lit.data.sampling.mixture import GlobalSequence
from v1lit.data.sampling.shuffle import Shuffle, SourceOrder
from v1lit.data.shards.catalog import Catalog
from v1lit.data.shards.examples import Examples

SHARDS = 10


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    folder = written(tmp_path / "there", 2 * SHARDS, per_shard=2)
    with FaultyServer() as server:
        server.files = {f"d/{path.name}": path.read_bytes() for path in folder.iterdir()}
        yield server


def opened_of(server: FaultyServer, tmp_path: Path, window: int, lanes: int = 1) -> OpenedSequence:
    config = StreamConfig(cache=str(tmp_path / "cache"), attempts=1, shuffle_window=window, lanes=lanes)
    return open_sequence([MixtureConfig(server.url("d"))], config, 1)


def prefetcher(opened: OpenedSequence, window: int, rank: int = 0, ranks: int = 1) -> ShardPrefetcher:
    return ShardPrefetcher(opened, 0, rank, ranks, window)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what must come."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def fetched(server: FaultyServer) -> list[str]:
    return [request.path.rpartition("/")[2] for request in server.requests if request.path.endswith(".tar")]


def shards_of(opened: OpenedSequence, positions: Any) -> list[str]:
    found = opened.sequence.find(0, np.array(list(positions)))
    return [opened.catalogs[0].files[n].rpartition("/")[2] for n in dict.fromkeys(found.shards.tolist())]


def test_the_shards_of_the_next_window_are_fetched_in_their_order(
    server: FaultyServer, tmp_path: Path
) -> None:
    opened = opened_of(server, tmp_path, window=4)
    expected = shards_of(opened, range(4))
    with prefetcher(opened, 4) as ahead:
        ahead.reached(0)
        until(lambda: len(fetched(server)) == len(expected))
        assert fetched(server) == expected
        ahead.reached(1)  # Half of the window is still ahead.
        ahead.reached(12)
        more = [name for name in shards_of(opened, range(12, 16)) if name not in expected]
        until(lambda: len(fetched(server)) == len(expected) + len(more))
    assert fetched(server) == expected + more


def test_a_rank_fetches_what_it_reads(server: FaultyServer, tmp_path: Path) -> None:
    opened = opened_of(server, tmp_path, window=2, lanes=2)
    with prefetcher(opened, 2, rank=1, ranks=2) as ahead:
        ahead.reached(7)
        expected = shards_of(opened, (7, 9))
        until(lambda: len(fetched(server)) == len(expected))
    assert fetched(server) == expected


def test_behind_the_end_there_is_nothing_to_fetch(server: FaultyServer, tmp_path: Path) -> None:
    opened = opened_of(server, tmp_path, window=10_000)
    with prefetcher(opened, 10_000) as ahead:
        ahead.reached(2 * SHARDS - 1)
        until(lambda: len(fetched(server)) == 1)
    assert fetched(server) == shards_of(opened, [2 * SHARDS - 1])


def test_its_thread_ends_with_the_block(server: FaultyServer, tmp_path: Path) -> None:
    opened = opened_of(server, tmp_path, window=4)
    with prefetcher(opened, 4) as ahead:
        assert not ahead._thread.is_alive()  # workers are forked before anything is reached
        ahead.reached(0)
        assert ahead._thread.is_alive()
        assert ahead._thread.daemon
    ahead._thread.join(60)
    assert not ahead._thread.is_alive()


def test_what_cannot_be_fetched_is_left_to_the_reader(server: FaultyServer, tmp_path: Path) -> None:
    opened = opened_of(server, tmp_path, window=100)
    order = shards_of(opened, range(2 * SHARDS))
    server.always[f"d/{order[0]}"] = hang_up
    with prefetcher(opened, 100) as ahead:
        ahead.reached(0)
        until(lambda: len(set(fetched(server))) == SHARDS)
    assert set(fetched(server)) == set(order)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_training_over_a_network_reads_every_shard_once(
    server: FaultyServer, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[threading.Thread] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (begun.append(self), start(self))[1])
    stream = {"shuffle_window": 4, "attempts": 2}
    module = fit(
        make_data(server.url("d"), tmp_path, stream=stream, num_workers=workers), tmp_path, max_epochs=2
    )
    half = len(module.batches) // 2
    for batches in (module.batches[:half], module.batches[half:]):
        assert sorted(id for batch in batches for id in batch) == names(2 * SHARDS)
    assert sorted(fetched(server)) == sorted(path.name for path in (tmp_path / "there").glob("*.tar"))
    assert sum(thread.name == "v1lit-prefetch" for thread in begun) == 2


def test_local_shards_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardPrefetcher, "_look_ahead", None)
    folder = written(tmp_path / "here", 4)
    assert len(fit(make_data(folder, tmp_path), tmp_path).batches) == 2
    assert not Catalog(folder).remote


def test_planning_ahead_takes_memory_for_the_rank_alone(tmp_path: Path) -> None:
    """Thousands of ranks and lanes: a window of all of them is not held at once."""
    lanes, window = 2048, 10_000
    order = SourceOrder(np.full(100_000, 300), Shuffle(1, True, window), lanes=lanes)
    opened = OpenedSequence(Examples([]), GlobalSequence([order], [30_000_000], 1))
    ahead = ShardPrefetcher(opened, 0, 5, 1024, window)
    tracemalloc.start()
    ahead._look_ahead(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    assert ahead._wanted
