"""hf://, against a server on localhost that knows the few requests of the Hub that are needed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.config import conf
from helpers import faulty_server as faults
from helpers.faulty_server import FaultyServer

from v1lit.data.remote import RemoteError, Retry, ShardCache, exists, expand, read_bytes, store
from v1lit.data.remote import filesystem as filesystems

pytestmark = pytest.mark.dependencies

QUICK = Retry(attempts=3, first_wait=0.001, longest_wait=0.002, timeout=5)
DATA = random.Random(2).randbytes(100_000)
FILES = {"v1/s-0.tar": DATA, "v1/s-1.tar": DATA[::-1], "v1/notes.txt": b"hello"}
REPO = "api/datasets/me/shards"


def entry(path: str) -> dict[str, object]:
    data = FILES[path]
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


def answer(handler: faults.Handler, content: object) -> None:
    body = json.dumps(content).encode()
    handler.begin(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
    handler.wfile.write(body)


class Hub(faults.Handler):
    """The Hub's interface to one repository of data, me/shards."""

    def do_GET(self) -> None:  # noqa: N802
        path = self.path.lstrip("/").partition("?")[0]
        if path == REPO or path.startswith(f"{REPO}/revision/"):
            self.path_name = path
            answer(self, {"id": "me/shards", "sha": "0" * 40, "private": False, "tags": [], "siblings": []})
        elif path.startswith(f"{REPO}/tree/"):
            self.path_name = path
            names = [name.removeprefix("datasets/me/shards/resolve/main/") for name in self.faulty.files]
            folder = path.removeprefix(f"{REPO}/tree/main").strip("/")
            top = {"type": "directory", "path": "v1", "oid": "0" * 40, "size": 0}
            answer(self, [entry(name) for name in names] if folder else [top])
        elif path.startswith("api/"):
            self.path_name = path
            self.begin(404, {"Content-Length": "0", "X-Error-Code": "RepoNotFound"})
        else:
            super().do_GET()

    def do_POST(self) -> None:  # noqa: N802
        self.path_name = self.path.lstrip("/")
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        answer(self, [entry(name) for name in FILES if name.replace("/", "%2F") in asked or name in asked])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    with FaultyServer(Hub) as server:
        server.files = {f"datasets/me/shards/resolve/main/{name}": data for name, data in FILES.items()}
        monkeypatch.setitem(conf, "hf", {"endpoint": server.url("").rstrip("/"), "token": False})
        monkeypatch.setattr(store, "BLOCK_BYTES", 30_000)
        filesystems.forget()
        yield server
        filesystems.forget()


def test_files_are_listed_looked_up_read_and_fetched(hub: FaultyServer, tmp_path: Path) -> None:
    url = "hf://datasets/me/shards/v1/s-0.tar"
    assert read_bytes("hf://datasets/me/shards/v1/notes.txt", 5, QUICK) == b"hello"
    cache = ShardCache(tmp_path, 10**9, QUICK)
    assert cache.fetch(url, len(DATA), hashlib.sha256(DATA).hexdigest()).read_bytes() == DATA
    name = "datasets/me/shards/resolve/main/v1/s-0.tar"
    assert hub.ranges(name) == [f"bytes={n}-{min(n + 29_999, 99_999)}" for n in range(0, 100_000, 30_000)]
    assert sum("/tree/" in request.path for request in hub.requests) == 1
    assert exists(url, QUICK)
    assert not exists("hf://datasets/me/shards/v1/s-9.tar", QUICK)
    found = expand("hf://datasets/me/shards/v1/*.tar", QUICK)
    assert found == [f"hf://datasets/me/shards/v1/s-{number}.tar" for number in (0, 1)]


def test_a_file_put_there_later_is_found(hub: FaultyServer) -> None:
    late = hub.files.pop("datasets/me/shards/resolve/main/v1/s-1.tar")
    assert exists("hf://datasets/me/shards/v1/s-0.tar", QUICK)
    assert not exists("hf://datasets/me/shards/v1/s-1.tar", QUICK)
    assert len(expand("hf://datasets/me/shards/v1/*.tar", QUICK)) == 1
    hub.files["datasets/me/shards/resolve/main/v1/s-1.tar"] = late
    assert exists("hf://datasets/me/shards/v1/s-1.tar", QUICK)
    assert len(expand("hf://datasets/me/shards/v1/*.tar", QUICK)) == 2


@pytest.mark.usefixtures("hub")
def test_a_missing_repository_ends_at_once() -> None:
    with pytest.raises(RemoteError, match="1 attempt") as error:
        read_bytes("hf://datasets/me/none/v1/s-0.tar", 10, QUICK)
    assert error.value.status == 404
