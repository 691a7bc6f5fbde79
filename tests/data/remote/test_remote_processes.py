"""Many processes, one cache, forked and killed at work: no deadlock, no double download, no half file."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from helpers import faulty_server as faults
from helpers.faulty_server import FaultyServer
from helpers.forked import PATIENCE, needs_fork, receive, run_all

from v1lit.data.remote import Retry, ShardCache, exists, read_bytes
from v1lit.data.remote.cache import name_of

pytestmark = [
    needs_fork,
    pytest.mark.slow,
]
QUICK = Retry(attempts=4, first_wait=0.001, longest_wait=0.002, timeout=5)
SIZE = 50_000
FILES = {f"{number}.tar": random.Random(number).randbytes(SIZE) for number in range(6)}


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        server.files.update(FILES)
        yield server


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def fetch_all(folder: Path, urls: list[str], seed: int, limit: int, rounds: int = 1) -> int:
    """Fetch files in an order of one's own, check each; returns how many were whole and right."""
    cache = ShardCache(folder, limit, QUICK)
    good = 0
    for _ in range(rounds):
        for url in random.Random(seed).sample(urls, len(urls)):
            for _ in range(20):  # Where others delete it before we open it, once more.
                try:
                    data = cache.fetch(url, SIZE).read_bytes()
                    break
                except FileNotFoundError:
                    continue
            good += data == FILES[url.rpartition("/")[2]]
    return good


def test_eight_processes_download_each_file_once(server: FaultyServer, tmp_path: Path) -> None:
    urls = [server.url(name) for name in FILES]
    arguments = [(tmp_path, urls, seed, 10**9) for seed in range(8)]
    assert run_all(fetch_all, arguments) == [len(FILES)] * 8
    assert sorted(request.path for request in server.requests) == sorted(FILES)


def test_eight_processes_with_room_for_few_files_read_only_whole_ones(
    server: FaultyServer, tmp_path: Path
) -> None:
    urls = [server.url(name) for name in FILES]
    arguments = [(tmp_path, urls, seed, 4 * SIZE, 3) for seed in range(8)]
    assert run_all(fetch_all, arguments) == [3 * len(FILES)] * 8
    assert sum(path.stat().st_size for path in (tmp_path / "files").iterdir()) <= 4 * SIZE
    assert list((tmp_path / "parts").iterdir()) == []


def test_faults_do_no_harm_to_many_processes(server: FaultyServer, tmp_path: Path) -> None:
    for name in FILES:
        server.faults[name] = [faults.status(503), faults.short(20_000), faults.wrong_range(3)]
    urls = [server.url(name) for name in FILES]
    assert run_all(fetch_all, [(tmp_path, urls, seed, 10**9) for seed in range(4)]) == [len(FILES)] * 4
    assert {len(server.ranges(name)) for name in FILES} == {4}


def test_a_forked_child_reads_though_its_parent_has_read_and_the_parent_goes_on(
    server: FaultyServer,
) -> None:
    """With the file systems that fsspec itself keeps, the parent would hang here (see filesystem.py)."""
    url = server.url("0.tar")
    assert read_bytes(url, SIZE, QUICK) == FILES["0.tar"]
    for _ in range(2):
        assert run_all(read_bytes, [(url, SIZE, QUICK)] * 3) == [FILES["0.tar"]] * 3
        assert read_bytes(url, SIZE, Retry(1, timeout=PATIENCE / 4)) == FILES["0.tar"]
    assert exists(url, QUICK)


def test_a_child_forked_in_the_middle_of_a_download_works_and_so_does_the_download(
    server: FaultyServer, tmp_path: Path
) -> None:
    server.faults["0.tar"] = [faults.stall(after=1000)]
    results: list[Path] = []
    cache = ShardCache(tmp_path, 10**9, Retry(2, timeout=PATIENCE / 4))
    url = server.url("0.tar")
    thread = threading.Thread(target=lambda: results.append(cache.fetch(url, SIZE)), daemon=True)
    thread.start()
    part = tmp_path / "parts" / f"{name_of(url)}.part"
    wait_until(lambda: part.exists() and part.stat().st_size == 1000)
    others = [server.url(name) for name in FILES if name != "0.tar"]
    assert run_all(fetch_all, [(tmp_path, others, seed, 10**9) for seed in range(3)]) == [len(others)] * 3
    server.released.set()
    thread.join(PATIENCE)
    assert results[0].read_bytes() == FILES["0.tar"]
    assert server.ranges("0.tar") == [None]


def test_the_lock_around_the_loop_of_fsspec_does_not_survive_a_fork(server: FaultyServer) -> None:
    import fsspec.asyn

    url = server.url("0.tar")
    read_bytes(url, SIZE, QUICK)
    with fsspec.asyn.get_lock():  # As if another thread of the parent were just starting the loop.
        assert run_all(read_bytes, [(url, SIZE, QUICK)]) == [FILES["0.tar"]]


@pytest.mark.parametrize("moment", ["before the answer", "in the middle"])
def test_a_killed_downloader_leaves_no_lock_and_the_next_goes_on(
    server: FaultyServer, tmp_path: Path, moment: str
) -> None:
    url = server.url("0.tar")
    part = tmp_path / "parts" / f"{name_of(url)}.part"
    at = 30_000 if moment == "in the middle" else 0
    server.faults["0.tar"] = [faults.stall(after=at)]
    process = multiprocessing.get_context("fork").Process(
        target=fetch_all, args=(tmp_path, [url], 0, 10**9), daemon=True
    )
    process.start()
    wait_until(lambda: len(server.requests) == 1 and part.exists() and part.stat().st_size == at)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(PATIENCE)
    assert not (tmp_path / "files" / name_of(url)).exists()
    cache = ShardCache(tmp_path, 10**9, QUICK)
    path = cache.fetch(url, SIZE, hashlib.sha256(FILES["0.tar"]).hexdigest())
    assert path.read_bytes() == FILES["0.tar"]
    assert server.ranges("0.tar") == [None, f"bytes={at}-" if at else None]


def test_a_child_that_outlives_a_killed_downloader_does_not_hold_its_lock(
    server: FaultyServer, tmp_path: Path
) -> None:
    """As DataLoader workers do that were forked while a thread of their parent held a lock."""
    url = server.url("0.tar")
    server.faults["0.tar"] = [faults.stall(after=1000)]
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_download_and_fork, args=(tmp_path, url, sender)
    )
    process.start()
    child = receive(receiver)
    try:
        os.kill(process.pid or 0, signal.SIGKILL)
        os.waitpid(process.pid or 0, 0)
        cache = ShardCache(tmp_path, 10**9, Retry(2, first_wait=0, longest_wait=0, timeout=2))
        assert cache.fetch(url, SIZE).read_bytes() == FILES["0.tar"]
    finally:
        os.kill(child, signal.SIGKILL)


def _download_and_fork(folder: Path, url: str, sender: Connection) -> None:
    cache = ShardCache(folder, 10**9, Retry(1, timeout=PATIENCE))
    threading.Thread(target=cache.fetch, args=(url, SIZE), daemon=True).start()
    part = folder / "parts" / f"{name_of(url)}.part"
    wait_until(lambda: part.exists() and part.stat().st_size == 1000)
    child = os.fork()
    if not child:
        time.sleep(PATIENCE)
        os._exit(0)
    sender.send((True, child))
    time.sleep(PATIENCE)


def test_kills_at_random_moments_never_leave_a_wrong_file(server: FaultyServer, tmp_path: Path) -> None:
    urls = [server.url(name) for name in FILES]
    random_number = random.Random(5)
    fork = multiprocessing.get_context("fork")
    for seed in range(8):
        workers = [
            fork.Process(target=fetch_all, args=(tmp_path, urls, seed + n, 3 * SIZE, 99), daemon=True)
            for n in range(2)
        ]
        for worker in workers:
            worker.start()
        time.sleep(random_number.uniform(0.02, 0.15))
        for worker in workers:
            worker.kill()
            worker.join(PATIENCE)
        for name, data in FILES.items():
            path = tmp_path / "files" / name_of(server.url(name))
            assert not path.exists() or path.read_bytes() == data
    assert fetch_all(tmp_path, urls, 0, 3 * SIZE) == len(FILES)
