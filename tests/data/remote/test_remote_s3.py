"""S3, spoken by a real server on localhost: listing, reading, caching, resuming, errors, forked processes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.forked import run_all

from v1lit.data.remote import RemoteError, Retry, ShardCache, download, exists, expand, read_bytes, store
from v1lit.data.remote import filesystem as filesystems

pytestmark = [pytest.mark.slow, pytest.mark.dependencies]

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("moto.server", reason="moto is not installed")

QUICK = Retry(attempts=3, first_wait=0.001, longest_wait=0.002, timeout=20)
DATA = random.Random(1).randbytes(200_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def client(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A bucket "data" on the server, which AWS_ENDPOINT_URL names, as the credentials do in variables."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    filesystems.forget()
    import boto3

    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="data")
    for name in ("s-0.tar", "s-1.tar", "s-10.tar", "notes.txt"):
        client.put_object(Bucket="data", Key=f"v1/{name}", Body=DATA)
    yield client
    for item in client.list_objects_v2(Bucket="data").get("Contents", []):
        client.delete_object(Bucket="data", Key=item["Key"])
    client.delete_bucket(Bucket="data")
    filesystems.forget()


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Files are read in blocks of 60,000 bytes; the list says which."""
    monkeypatch.setattr(store, "BLOCK_BYTES", 60_000)
    read: list[tuple[int, int]] = []
    original = store.call

    def call(filesystem: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "cat_file":
            read.append((kwargs["start"], kwargs["end"]))
        return original(filesystem, method, *args, **kwargs)

    monkeypatch.setattr(store, "call", call)
    return read


@pytest.mark.usefixtures("client")
def test_patterns_are_expanded() -> None:
    assert expand("s3://data/v1/s-*.tar", QUICK) == [f"s3://data/v1/s-{n}.tar" for n in (0, 1, 10)]
    assert expand("s3://data/v1/s-{0..1}.tar", QUICK) == [f"s3://data/v1/s-{n}.tar" for n in (0, 1)]
    assert expand("s3://data/{v1,v1}/s-?.tar", QUICK) == [f"s3://data/v1/s-{n}.tar" for n in (0, 1)]
    with pytest.raises(ValueError, match="nothing matches"):
        expand("s3://data/v2/*.tar", QUICK)


def test_a_file_put_there_later_is_listed_too(client: Any) -> None:
    assert len(expand("s3://data/v1/s-*.tar", QUICK)) == 3
    client.put_object(Bucket="data", Key="v1/s-2.tar", Body=DATA)
    assert len(expand("s3://data/v1/s-*.tar", QUICK)) == 4


def test_small_files_are_read_and_looked_up(client: Any) -> None:
    client.put_object(Bucket="data", Key="v1/empty", Body=b"")
    assert read_bytes("s3://data/v1/s-0.tar", len(DATA), QUICK) == DATA
    assert read_bytes("s3://data/v1/empty", 0, QUICK) == b""
    with pytest.raises(ValueError, match="larger than"):
        read_bytes("s3://data/v1/s-0.tar", len(DATA) - 1, QUICK)
    assert exists("s3://data/v1/s-0.tar", QUICK)
    assert exists("s3://data/v1", QUICK)
    assert not exists("s3://data/v1/s-9.tar", QUICK)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("url", ["s3://data/v1/s-9.tar", "s3://nothing/s-0.tar"])
def test_a_missing_file_or_bucket_ends_at_once(url: str) -> None:
    with pytest.raises(RemoteError, match=r"1 attempt, .*is the path right") as error:
        read_bytes(url, 10, QUICK)
    assert error.value.status == 404


@pytest.mark.usefixtures("client")
def test_a_folder_is_not_a_file() -> None:
    with pytest.raises(RemoteError, match="a folder, not a file"):
        read_bytes("s3://data/v1", 10, QUICK)


@pytest.mark.usefixtures("client")
def test_missing_credentials_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    filesystems.forget()
    with pytest.raises(RemoteError, match=r"1 attempt, .*[Cc]redentials"):
        read_bytes("s3://data/v1/s-0.tar", 10**6, QUICK)


def test_an_endpoint_that_is_down_is_an_error_after_all_attempts(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    filesystems.forget()
    with pytest.raises(RemoteError, match="3 attempts") as error:
        read_bytes("s3://data/v1/s-0.tar", 10**6, QUICK)
    assert error.value.kind == "unreachable"
    assert error.value.status is None


def test_the_configuration_of_fsspec_is_kept(
    client: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.config import conf

    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setitem(conf, "s3", {"endpoint_url": endpoint, "config_kwargs": {"user_agent": "mine"}})
    filesystems.forget()
    assert exists("s3://data/v1/s-0.tar", QUICK)
    opened = filesystems.open_filesystem("s3://data", QUICK)
    assert opened.config_kwargs["user_agent"] == "mine"
    assert opened.config_kwargs["read_timeout"] == QUICK.timeout


@pytest.mark.usefixtures("client")
def test_a_file_is_fetched_verified_and_kept(tmp_path: Path, blocks: list[tuple[int, int]]) -> None:
    cache = ShardCache(tmp_path, 10**9, QUICK)
    path = cache.fetch("s3://data/v1/s-0.tar", len(DATA), SHA)
    assert path.read_bytes() == DATA
    assert blocks == [(0, 60_000), (60_000, 120_000), (120_000, 180_000), (180_000, 200_000)]
    assert cache.fetch("s3://data/v1/s-0.tar") == path
    assert len(blocks) == 4
    with pytest.raises(RemoteError) as error:
        cache.fetch("s3://data/v1/s-1.tar", len(DATA), "0" * 64)
    assert error.value.kind == "checksum"


def test_a_file_that_changed_is_fetched_anew(client: Any, tmp_path: Path) -> None:
    url = "s3://data/v1/s-0.tar"
    assert ShardCache(tmp_path, 10**9, QUICK).fetch(url).read_bytes() == DATA
    client.put_object(Bucket="data", Key="v1/s-0.tar", Body=DATA[::-1])
    assert ShardCache(tmp_path, 10**9, QUICK).fetch(url).read_bytes() == DATA[::-1]


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("what", ["error", "short"])
def test_after_a_fault_only_the_rest_is_read(
    tmp_path: Path, blocks: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    original = store.call

    def call(filesystem: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "cat_file" and len(blocks) == 2:
            blocks.append((-1, -1))
            if what == "error":
                raise ConnectionResetError("reset")
            return DATA[120_000:150_000]
        return original(filesystem, method, *args, **kwargs)

    monkeypatch.setattr(store, "call", call)
    download("s3://data/v1/s-0.tar", tmp_path / "a.tar", retry=QUICK)
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert blocks[3][0] == (120_000 if what == "error" else 150_000)


def test_a_file_replaced_between_two_blocks_is_not_mixed(
    client: Any, tmp_path: Path, blocks: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = store.call

    def call(filesystem: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "cat_file" and len(blocks) == 2:
            client.put_object(Bucket="data", Key="v1/s-0.tar", Body=DATA[::-1])
        return original(filesystem, method, *args, **kwargs)

    monkeypatch.setattr(store, "call", call)
    download("s3://data/v1/s-0.tar", tmp_path / "a.tar", retry=QUICK)
    assert (tmp_path / "a.tar").read_bytes() == DATA[::-1]


@pytest.mark.slow
@pytest.mark.usefixtures("client")
def test_forked_processes_share_a_cache_and_the_parent_goes_on(tmp_path: Path) -> None:
    urls = expand("s3://data/v1/s-*.tar", QUICK)
    assert run_all(_fetch_all, [(tmp_path, urls)] * 4) == [[SHA] * 3] * 4
    assert read_bytes(urls[0], len(DATA), QUICK) == DATA
    assert len(list((tmp_path / "files").iterdir())) == 3


def _fetch_all(folder: Path, urls: list[str]) -> list[str]:
    cache = ShardCache(folder, 10**9, QUICK)
    return [hashlib.sha256(cache.fetch(url).read_bytes()).hexdigest() for url in urls]
