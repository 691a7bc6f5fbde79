"""Training from a real server that speaks S3: a folder with an index, and a glob."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.elastic_runs import each_once, fit, make_data, write_shards
from helpers.forked import needs_fork
from helpers.remote_shards import check_cache, of, stream

from v1lit.data.config import SourceConfig
from v1lit.data.remote import filesystem

pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("moto.server", reason="moto is not installed")
pytestmark = [needs_fork, pytest.mark.timeout(600), pytest.mark.slow, pytest.mark.dependencies]
SHARDS = 5


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A bucket "data" on a server of its own, and what is asked of it."""
    from moto.server import ThreadedMotoServer
    from werkzeug.serving import WSGIRequestHandler

    asked: list[str] = []
    monkeypatch.setattr(WSGIRequestHandler, "log_request", lambda self, *args: asked.append(self.requestline))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    for name, value in {
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    filesystem.forget()
    yield asked
    filesystem.forget()
    server.stop()


def upload(folder: Path, at: str) -> None:
    import boto3

    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="data")
    for path in folder.rglob("*"):
        if path.is_file():
            client.put_object(Bucket="data", Key=f"{at}/{path.relative_to(folder)}", Body=path.read_bytes())


@pytest.mark.parametrize("indexed", [True, False], ids=["with an index", "without"])
def test_training_from_s3_reads_what_is_read_from_a_disk(
    indexed: bool, requests: list[str], tmp_path: Path
) -> None:
    folder, cache = tmp_path / "shards", tmp_path / "cache"
    ids = write_shards(folder / "train", 5 * SHARDS)
    write_shards(folder / "val", 3, name="v")
    if not indexed:
        for path in folder.glob("*/*index*"):
            path.unlink()
    upload(folder, "v1")
    options: dict[str, Any] = {"max_epochs": 2, "ranks": 2}
    local = fit(
        tmp_path / "a", make_data("nowhere", source=of(folder / "train"), stream=stream(cache)), **options
    )
    run = fit(
        tmp_path / "b",
        make_data(
            "nowhere", source=of("s3://data/v1/train/shard-*.tar"), num_workers=2, stream=stream(cache)
        ),
        **options,
    )
    assert run.batches == local.batches
    for epoch in (0, 1):
        assert each_once(run.epoch(epoch), ids)
    urls = [f"s3://data/v1/train/shard-{number:06}.tar" for number in range(SHARDS)]
    check_cache(cache, urls, folder / "train")
    got = [line for line in requests if line.startswith("GET") and ".tar" in line]
    assert len(got) == SHARDS
    if indexed:
        whole = make_data(
            "nowhere", source=SourceConfig(folder="s3://data/v1"), num_workers=1, stream=stream(cache)
        )
        again = fit(tmp_path / "c", whole, **options)
        assert each_once(again.epoch(1), ids)
        assert len(again.validations) == 2
        got = [line for line in requests if line.startswith("GET") and "train/" in line and ".tar" in line]
        assert len(got) == SHARDS
