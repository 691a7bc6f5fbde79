"""A copy in the cache that is damaged is fetched again, once; what is wrong on the server stays an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.faulty_server import FaultyServer
from helpers.tiny_runs import names, without_index, written

from v1lit.data.config import StreamConfig
from v1lit.data.errors import ShardError
from v1lit.data.example import ExampleRef
from v1lit.data.shards.catalog import Catalog
from v1lit.data.shards.examples import Examples

SHARD = "a/shard-000000.tar"
SIDECAR = "a/shard-000000.index.safetensors"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    folder = written(tmp_path / "a", 5)
    with FaultyServer() as server:
        server.files = {f"a/{path.name}": path.read_bytes() for path in folder.iterdir()}
        yield server


def opened(location: str, tmp_path: Path) -> Examples:
    return Examples([Catalog(location, StreamConfig(cache=str(tmp_path / "cache"), attempts=1, timeout=5))])


def ref(number: int) -> ExampleRef:
    """An example of the only shard."""
    return ExampleRef(epoch_index=number, source=0, shard=0, index=number)


def read(examples: Examples) -> list[str]:
    return [examples.read(ref(number)).id for number in range(5)]


def damage(tmp_path: Path, name: str) -> None:
    """Change bytes of the copy in place: size and inode stay."""
    [path] = (tmp_path / "cache" / "shards" / "files").glob(f"*-{Path(name).name}")
    with path.open("r+b") as file:
        file.write(spoiled(path.read_bytes()))


def spoiled(data: bytes) -> bytes:
    return bytes(byte ^ 0x55 for byte in data)


def downloads(server: FaultyServer, name: str) -> int:
    return sum(range != "bytes=0-0" for range in server.ranges(name))


@pytest.mark.parametrize("name", [SHARD, SIDECAR])
def test_a_copy_damaged_before_it_is_opened_is_fetched_again(
    server: FaultyServer, tmp_path: Path, name: str
) -> None:
    assert read(opened(server.url("a"), tmp_path)) == names(5)
    damage(tmp_path, name)
    assert read(opened(server.url("a"), tmp_path)) == names(5)
    assert downloads(server, name) == 2


def test_a_copy_damaged_while_it_is_open_is_fetched_again(server: FaultyServer, tmp_path: Path) -> None:
    examples = opened(server.url("a"), tmp_path)
    examples.read(ref(0))
    damage(tmp_path, SHARD)
    assert read(examples) == names(5)
    assert downloads(server, SHARD) == 2


def test_a_copy_damaged_again_stays_an_error_in_this_process(server: FaultyServer, tmp_path: Path) -> None:
    examples = opened(server.url("a"), tmp_path)
    for _ in range(2):
        assert read(examples) == names(5)
        damage(tmp_path, SHARD)
    with pytest.raises(ShardError) as caught:
        read(examples)
    assert caught.value.kind == "checksum"
    assert downloads(server, SHARD) == 2


def test_processes_that_all_meet_the_damage_fetch_once(server: FaultyServer, tmp_path: Path) -> None:
    readers = [opened(server.url("a"), tmp_path) for _ in range(3)]
    for reader in readers:
        reader.read(ref(0))
    damage(tmp_path, SHARD)
    assert [read(reader) for reader in readers] == [names(5)] * 3
    assert downloads(server, SHARD) == 2


def test_without_an_index_a_damaged_copy_is_fetched_again_when_it_is_opened(
    server: FaultyServer, tmp_path: Path
) -> None:
    without_index(tmp_path / "a")
    server.files = {SHARD: server.files[SHARD]}
    location = server.url("a/shard-{000000..000000}.tar")
    assert read(opened(location, tmp_path)) == names(5)
    damage(tmp_path, SHARD)
    assert read(opened(location, tmp_path)) == names(5)
    assert downloads(server, SHARD) == 2


@pytest.mark.parametrize("indexed", [True, False])
def test_what_is_damaged_on_the_server_is_fetched_twice_at_most(
    server: FaultyServer, tmp_path: Path, indexed: bool
) -> None:
    server.files[SHARD] = spoiled(server.files[SHARD])
    if not indexed:
        server.files = {SHARD: server.files[SHARD]}
    examples = opened(server.url("a" if indexed else SHARD), tmp_path)
    reasons = set()
    for number in range(5):
        with pytest.raises(ShardError) as caught:
            examples.read(ref(number))
        reasons.add((caught.value.kind, caught.value.reason))
    assert len(reasons) == 1
    assert downloads(server, SHARD) <= 2


def test_a_wrong_sidecar_does_not_fetch_the_shard_again(server: FaultyServer, tmp_path: Path) -> None:
    server.files[SIDECAR] = spoiled(server.files[SIDECAR])
    with pytest.raises(ShardError):
        read(opened(server.url("a"), tmp_path))
    assert downloads(server, SHARD) <= 1
    assert downloads(server, SIDECAR) == 2


def test_local_shards_are_left_alone(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", 5)
    path = folder / Path(SHARD).name
    path.write_bytes(spoiled(path.read_bytes()))
    with pytest.raises(ShardError):
        read(opened(str(folder), tmp_path))
    assert path.exists()
    assert not (tmp_path / "cache").exists()
