"""Shards behind a web server that fails at random, and what a cache holds of them."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from helpers import faulty_server as faults
from helpers.faulty_server import FaultyServer, Handler
from v1lit.data.config import MixtureConfig, SourceConfig, StreamConfig
from v1lit.data.remote import Retry
from v1lit.data.remote.cache import name_of
from v1lit.files import sha256_of

MOST_FAULTS = 3
"""In a row, for one file."""
ATTEMPTS = MOST_FAULTS + 1


class SharedHandler(Handler):
    """Ends connections also where a forked reader has inherited a copy of them, which keeps them open."""

    def reset(self) -> None:
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        super().reset()


def slow(handler: Handler, data: bytes | None) -> None:
    """All of the file, in pieces with pauses between them."""
    assert data is not None
    body = handler.begin_file(data)
    for start in range(0, len(body), 1 + len(body) // 4):
        handler.wfile.write(body[start : start + 1 + len(body) // 4])
        handler.wfile.flush()
        time.sleep(0.02)


class Chaos:
    """Lets about half of the answers fail, each file at most `MOST_FAULTS` times in a row."""

    def __init__(self, seed: int) -> None:
        self.seen: Counter[str] = Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._in_a_row: Counter[str] = Counter()

    def __call__(self, handler: Handler, data: bytes | None) -> None:
        if data is None:
            faults.serve(handler, data)
            return
        with self._lock:
            name, fault = self._choose(len(data))
            path = handler.path_name
            if name not in ("served", "slow") and self._in_a_row[path] == MOST_FAULTS:
                name, fault = "served", faults.serve
            self._in_a_row[path] = 0 if name in ("served", "slow") else self._in_a_row[path] + 1
            self.seen[name] += 1
        fault(handler, data)

    def _choose(self, size: int) -> tuple[str, Any]:
        after = self._random.randrange(size)
        choices = {
            "reset before": faults.hang_up,
            "reset within": faults.reset(after),
            "short": faults.short(after),
            "status 500": faults.status(500),
            "status 503": faults.status(503),
            "slow": slow,
        }
        if self._random.random() < 0.5:
            return "served", faults.serve
        name = self._random.choice([*choices])
        return name, choices[name]


def offer(server: FaultyServer, folder: Path, at: str) -> str:
    """Let the server have all files of a folder; returns the folder's URL."""
    for path in folder.iterdir():
        server.files[f"{at}/{path.name}"] = path.read_bytes()
    return server.url(at)


def fail_always(server: FaultyServer, fault: Any) -> None:
    """Let all answers be decided by one fault."""
    for path in server.files:
        server.always[path] = fault


def fetched(server: FaultyServer, ending: str = ".tar") -> Counter[str]:
    """How often each file was asked for."""
    return Counter(request.path for request in server.requests if request.path.endswith(ending))


def of(location: str | Path) -> SourceConfig:
    """A source with these training shards alone."""
    return SourceConfig(mixture=[MixtureConfig(str(location))], folder="nowhere")


def stream(cache: Path, **options: Any) -> StreamConfig:
    """Impatient, with a cache of its own, and reading one or two shards at a time."""
    return StreamConfig(
        **{"cache": str(cache), "attempts": ATTEMPTS, "timeout": 20.0, "shuffle_window": 10, **options}
    )


def check_cache(cache: Path, urls: list[str], folder: Path) -> None:
    """Assert that the cache holds these files, whole, and nothing half."""
    files = {path.name: path for path in cache.glob("**/files/*") if ".tar" in path.name}
    assert {*files} == {name_of(url) for url in urls}
    for url in urls:
        assert sha256_of(files[name_of(url)]) == sha256_of(folder / url.rpartition("/")[2])
    assert not list(cache.glob("**/parts/*"))


def wait_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(Retry, "wait", lambda self, attempt: 0.001)
