"""Training on shards that come over a network: faults lose none, and what cannot be had ends the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import faulty_server as faults
from helpers import remote_shards
from helpers.elastic_runs import Run, SaveAt, each_once, fit, ids_of, make_data, write_shards
from helpers.faulty_server import FaultyServer
from helpers.forked import needs_fork, run_all
from helpers.remote_shards import Chaos, SharedHandler, check_cache, fail_always, fetched, of, offer, stream
from lightning import Callback, Trainer

from v1lit.data.config import MixtureConfig, PackingConfig
from v1lit.data.errors import BadDataError
from v1lit.data.loading.prefetch import ShardPrefetcher
from v1lit.data.loading.sequence import open_sequence
from v1lit.data.remote import ShardCache
from v1lit.data.shards.catalog import Catalog

pytestmark = [needs_fork, pytest.mark.timeout(600), pytest.mark.slow]
SHARDS = 8
PER_SHARD = 5
IDS = [f"e{number:03}" for number in range(SHARDS * PER_SHARD)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    assert write_shards(folder / "train", len(IDS), per_shard=PER_SHARD) == IDS
    return folder / "train"


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    remote_shards.wait_little(monkeypatch)
    with FaultyServer(SharedHandler) as server:
        offer(server, folder, "train")
        yield server


def urls(server: FaultyServer) -> list[str]:
    return [server.url(f"train/shard-{number:06}.tar") for number in range(SHARDS)]


def train(work: Path, location: str | Path, cache: Path, **options: Any) -> Run:
    """Two epochs with two workers."""
    data = make_data(
        "nowhere",
        source=of(location),
        num_workers=options.pop("num_workers", 2),
        stream=stream(cache, **options.pop("stream", {})),
        packing=PackingConfig(150, look_ahead=8) if options.pop("packed", False) else None,
    )
    return fit(work, data, **{"max_epochs": 2, **options})


# ------------------------------------------------------------------ faults


@pytest.mark.parametrize("packed", [False, True], ids=["counted", "packed"])
def test_faults_while_training_change_nothing_and_the_next_run_downloads_nothing(
    packed: bool, server: FaultyServer, folder: Path, tmp_path: Path
) -> None:
    local = train(tmp_path / "local", folder, tmp_path / "unused", packed=packed)
    chaos = Chaos(seed=5)
    fail_always(server, chaos)
    cache = tmp_path / "cache"
    run = train(tmp_path / "a", server.url("train"), cache, packed=packed)
    assert run.batches == local.batches
    assert each_once(run.epoch(0), IDS)
    assert each_once(run.epoch(1), IDS)
    assert len(chaos.seen) == 7, chaos.seen
    assert not (tmp_path / "a" / "skipped.jsonl").exists()
    check_cache(cache, urls(server), folder)
    before = len(server.requests)
    again = train(tmp_path / "b", server.url("train"), cache, packed=packed)
    assert again.batches == local.batches
    assert not [one.path for one in server.requests[before:] if one.path.endswith(".tar")]


class Gone:
    """A server that answers so many requests for shards, and resets all that come after."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, handler: Any, data: bytes | None) -> None:
        if handler.path_name.endswith(".tar"):
            self.left -= 1
        (faults.serve if self.left >= 0 else faults.hang_up)(handler, data)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_server_that_goes_away_ends_the_run_with_a_count_of_what_was_lost(
    num_workers: int, server: FaultyServer, tmp_path: Path
) -> None:
    fail_always(server, Gone(after=3))
    limits = {"attempts": 2, "timeout": 5.0, "max_bad_in_a_row": 6, "max_bad_fraction": 1.0}
    with pytest.raises(BadDataError) as error:
        train(
            tmp_path / "run", server.url("train"), tmp_path / "cache", num_workers=num_workers, stream=limits
        )
    lines = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    skipped = [json.loads(line) for line in lines]
    assert {one["kind"] for one in skipped} == {"unreachable"}
    assert {one["shard"] for one in skipped} <= {*urls(server)}
    assert f"skipped {len(skipped)} of " in str(error.value)
    assert f"({len(skipped)} unreachable)" in str(error.value)
    assert "more than data.stream.max_bad_in_a_row=6 in a row" in str(error.value)
    assert "2 attempts" in str(error.value)
    # Each reader, and the thread that fetches ahead, tries a shard once, with two attempts, however many
    # examples it needs from it; the library itself asks again where a connection that it had kept is reset.
    assert max(fetched(server).values()) <= 2 * 2 * (max(1, num_workers) + 1)


def test_what_can_be_had_is_used_where_losses_are_allowed(
    server: FaultyServer, folder: Path, tmp_path: Path
) -> None:
    lost = ["e010", "e011", "e012", "e013", "e014", "e030", "e031", "e032", "e033", "e034"]
    for number in (2, 6):
        server.always[f"train/shard-{number:06}.tar"] = faults.status(503)
    limits = {"attempts": 2, "max_bad_fraction": 1.0}
    run = train(tmp_path / "run", server.url("train"), tmp_path / "cache", stream=limits)
    assert each_once(run.epoch(0), [id for id in IDS if id not in lost])
    assert each_once(run.epoch(1), [id for id in IDS if id not in lost])
    lines = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    skipped = [json.loads(line) for line in lines]
    places = Counter((one["epoch"], Path(one["shard"]).name, one["number"]) for one in skipped)
    shards = [f"shard-{number:06}.tar" for number in (2, 6)]
    assert places == Counter(
        (epoch, shard, number) for epoch in (0, 1) for shard in shards for number in range(PER_SHARD)
    )


def test_a_server_that_was_never_there_is_told_at_once(server: FaultyServer, tmp_path: Path) -> None:
    fail_always(server, faults.status(503))
    with pytest.raises(ValueError, match=r"index.json.*2 attempts.*status 503"):
        train(tmp_path / "run", server.url("train"), tmp_path / "cache", stream={"attempts": 2})
    data = make_data(server.url(""), stream=stream(tmp_path / "cache", attempts=2))
    with pytest.raises(ValueError, match=r"index.json.*2 attempts.*status 503"):
        fit(tmp_path / "folder", data)
    assert len(server.requests) == 4


# ------------------------------------------------------------------ no index, a small cache, a shared one


def test_shards_without_an_index_come_in_the_order_of_those_with_one(
    server: FaultyServer, folder: Path, tmp_path: Path
) -> None:
    for path in [path for path in server.files if "index" in path]:
        del server.files[path]
    chaos = Chaos(seed=6)
    fail_always(server, chaos)
    local = train(tmp_path / "local", folder, tmp_path / "unused", accumulate_grad_batches=2)
    cache = tmp_path / "cache"
    for ranks, accumulate in ((1, 2), (2, 1)):
        run = train(
            tmp_path / str(ranks),
            server.url("train/shard-{000000..000007}.tar"),
            cache,
            ranks=ranks,
            accumulate_grad_batches=accumulate,
        )
        assert run.batches == local.batches
    check_cache(cache, urls(server), folder)


def test_a_cache_that_is_smaller_than_the_data_is_enough(
    server: FaultyServer, folder: Path, tmp_path: Path
) -> None:
    """Room for three of eight shards, with two ranks, four workers and two threads that fetch ahead."""
    largest = max(path.stat().st_size for path in folder.glob("*.tar"))
    small = {"cache_gb": 3.5 * largest / 1e9}
    options = {"ranks": 2, "accumulate_grad_batches": 2}
    local = train(tmp_path / "local", folder, tmp_path / "unused", **options)
    cache = tmp_path / "cache"
    run = train(tmp_path / "run", server.url("train"), cache, stream=small, **options)
    assert run.batches == local.batches
    assert not (tmp_path / "run" / "skipped.jsonl").exists()
    assert sum(path.stat().st_size for path in cache.glob("**/files/*")) <= 3.5 * largest
    assert sum(fetched(server).values()) > SHARDS  # some came twice


def test_a_shard_that_others_delete_before_it_is_open_is_fetched_again(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, deleted = ShardCache.fetch, 0

    def fetch_and_lose(cache: ShardCache, location: str, *args: Any) -> Path:
        nonlocal deleted
        path = fetch(cache, location, *args)
        if deleted < 5:
            deleted += 1
            path.unlink()
        return path

    monkeypatch.setattr(ShardCache, "fetch", fetch_and_lose)
    catalog = Catalog(server.url("train"), stream(tmp_path / "cache"))
    assert [catalog.open(3).example(number).id for number in range(PER_SHARD)] == IDS[15:20]
    assert deleted == 5


def test_two_runs_at_the_same_time_share_a_cache(server: FaultyServer, folder: Path, tmp_path: Path) -> None:
    fail_always(server, remote_shards.slow)
    arguments = [(tmp_path / name, server.url("train"), tmp_path / "cache") for name in "ab"]
    first, second = run_all(_batches_of, arguments)
    assert first == second
    assert Counter(id for step in first for batch in step for id in batch) == Counter(2 * IDS)
    assert {*fetched(server).values()} == {1}
    check_cache(tmp_path / "cache", urls(server), folder)


def _batches_of(work: Path, location: str, cache: Path) -> Any:
    return train(work, location, cache, num_workers=0).batches


# ------------------------------------------------------------------ fetched ahead


class Watch(Callback):
    """Waits before every step until nothing is being fetched ahead, and notes who has fetched what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fetched: dict[str, str] = {}
        """Shard -> thread that has downloaded it."""
        self._ahead: list[ShardPrefetcher] = []
        self._busy = 0
        enter, download = ShardPrefetcher.__enter__, ShardCache._download

        def note_prefetcher(prefetcher: ShardPrefetcher) -> ShardPrefetcher:
            self._ahead.append(prefetcher)
            return enter(prefetcher)

        def note_download(cache: ShardCache, entry: Any, *args: Any) -> None:
            download(cache, entry, *args)
            self.fetched[entry.url] = threading.current_thread().name

        monkeypatch.setattr(ShardPrefetcher, "__enter__", note_prefetcher)
        monkeypatch.setattr(ShardCache, "_download", note_download)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        (prefetcher,) = self._ahead
        places = prefetcher.sequence.find(0, np.arange(0, prefetcher._looked_up_to))
        wanted = {prefetcher.catalogs[0].files[shard] for shard in places.shards[places.present]}
        for _ in range(2000):
            if wanted <= {*self.fetched}:
                return
            time.sleep(0.01)
        raise AssertionError(f"{wanted - {*self.fetched}} were not fetched ahead")


def test_shards_are_fetched_before_they_are_needed(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards in a window: the first window is waited for, the others are there when they are needed."""
    watch = Watch(monkeypatch)
    data = make_data("nowhere", source=of(server.url("train")), stream=stream(tmp_path / "cache"))
    run = fit(tmp_path / "run", data, watch)
    assert each_once(run.epoch(0), IDS)
    by_reader = [url for url in urls(server) if watch.fetched[url] == "MainThread"]
    assert 1 <= len(by_reader) <= 2
    assert {watch.fetched[url] for url in urls(server)} == {"MainThread", "v1lit-prefetch"}
    assert {*fetched(server).values()} == {1}


def test_each_rank_fetches_its_own_shards_also_where_a_run_goes_on(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one example of two lanes, the first rank of two reads the second lane."""
    location, lanes = server.url("train"), {"lanes": 2}
    save = SaveAt(tmp_path, "on_train_batch_end", (1,))
    source = {"source": of(location), "stream": stream(tmp_path / "cache", **lanes)}
    fit(tmp_path / "a", make_data("nowhere", batch_size=1, **source), save)
    reached = ShardPrefetcher.reached

    def note(prefetcher: ShardPrefetcher, position: int) -> None:
        reached(prefetcher, position)
        with prefetcher._changed:
            wanted = sorted({number for _, number in (*prefetcher._wanted, *prefetcher._fetched)})
        (tmp_path / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(wanted))

    monkeypatch.setattr(ShardPrefetcher, "reached", note)
    rest = fit(tmp_path / "b", make_data("nowhere", **source), ranks=2, resume=save.last)
    assert len(ids_of(rest.steps)) == len(IDS) - 1
    for rank in range(2):
        read = {int(id[1:]) // PER_SHARD for step in rest.steps for id in step.batches[rank]}
        wanted = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(wanted) >= 3
        assert {*wanted} <= read


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.elastic_runs import fit, make_data
from helpers.remote_shards import of, stream
work = Path(sys.argv[3])
patient = stream(work / "cache", timeout=3600.0)
data = make_data("nowhere", source=of(sys.argv[2]), num_workers=2, stream=patient)
print(len(fit(work / "run", data, max_steps=int(sys.argv[4])).steps), "steps", flush=True)
"""


def test_a_file_that_is_being_fetched_ahead_keeps_no_process_alive(
    server: FaultyServer, folder: Path, tmp_path: Path
) -> None:
    """Shards that the first step does not need never come."""
    plan = open_sequence([MixtureConfig(str(folder))], stream(tmp_path), seed=3).sequence
    first = set(plan.find(0, np.arange(10)).shards.tolist())
    for number in {*range(SHARDS)} - first:
        server.always[f"train/shard-{number:06}.tar"] = faults.stall(10)
    arguments = [str(Path(__file__).parents[1]), server.url("train"), str(tmp_path), "1"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 steps" in done.stdout
