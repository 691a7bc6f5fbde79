"""`ShardDataset`: every example once over all readers, in an order that seed and epoch alone decide."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.faulty_server import FaultyServer
from helpers.shard_cases import make, write
from torch.utils.data import DataLoader

from v1lit.data.config import StreamConfig
from v1lit.data.errors import ShardError
from v1lit.data.example import Example
from v1lit.data.loading.dataset import ShardDataset
from v1lit.data.shards import open_shards, write_index

pytestmark = pytest.mark.dependencies

COUNT = 23


def written(folder: Path, count: int = COUNT, per_shard: int = 5, first: int = 0) -> Path:
    return write(folder, [str(number) for number in range(first, first + count)], max_examples=per_shard)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("shards"))


def ids(dataset: ShardDataset) -> list[int]:
    return [int(example.id) for example in dataset]


def first(items: list[Example]) -> Example:
    return items[0]


def through_workers(dataset: ShardDataset, workers: int, **options: Any) -> list[int]:
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, collate_fn=first, **options)
    return [int(example.id) for example in loader]


def test_unshuffled_is_the_written_order(folder: Path) -> None:
    dataset = ShardDataset(folder, shuffle=False)
    assert len(dataset) == COUNT
    assert ids(dataset) == list(range(COUNT))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, COUNT, COUNT + 5])
@pytest.mark.parametrize("window", [1, 4, 10_000])
def test_ranks_share_an_epoch_without_gaps_or_doubles(folder: Path, world_size: int, window: int) -> None:
    config = StreamConfig(shuffle_window=window)
    whole = ids(ShardDataset(folder, seed=3, config=config))
    assert sorted(whole) == list(range(COUNT))
    for rank in range(world_size):
        part = ShardDataset(folder, seed=3, config=config, rank=rank, world_size=world_size)
        assert ids(part) == whole[rank::world_size]  # One order for any split.


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_workers_share_the_part_of_their_rank(folder: Path, workers: int, rank: int) -> None:
    dataset = ShardDataset(folder, rank=rank, world_size=2)
    assert through_workers(dataset, workers) == ids(dataset)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_more_readers_than_shards_or_examples(tmp_path: Path) -> None:
    written(tmp_path, count=3, per_shard=100)
    assert sorted(through_workers(ShardDataset(tmp_path), 4)) == [0, 1, 2]


@pytest.mark.slow
def test_workers_that_are_started_afresh_read_the_same(folder: Path) -> None:
    dataset = ShardDataset(folder, rank=0, world_size=1)
    next(iter(dataset))  # Open files are no hindrance.
    assert through_workers(dataset, 1, multiprocessing_context="spawn") == ids(dataset)


def test_seed_and_epoch_decide_the_order(folder: Path) -> None:
    orders = [ids(ShardDataset(folder, seed=seed, epoch=epoch)) for seed in (1, 2) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 6
    assert ids(ShardDataset(folder, seed=1, epoch=1)) == orders[1]
    dataset = ShardDataset(folder, seed=1)
    assert ids(dataset) == ids(dataset) == orders[0]


def test_few_files_are_open_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_shards, "MAX_OPEN_SHARDS", 1)
    dataset = ShardDataset(folder)
    assert sorted(ids(dataset)) == list(range(COUNT))
    assert len(dataset._opened.examples._open._shards) == 1


def test_without_an_index_the_order_is_the_same(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.tar"):
        shutil.copy(path, tmp_path)
    assert len(ShardDataset(tmp_path)) == COUNT
    assert ids(ShardDataset(tmp_path, seed=4)) == ids(ShardDataset(folder, seed=4))
    assert ids(ShardDataset(tmp_path / "shard-000001.tar", shuffle=False)) == [5, 6, 7, 8, 9]


def test_shards_on_a_server_are_read_as_local_ones(folder: Path, tmp_path: Path) -> None:
    with FaultyServer() as server:
        server.files = {f"d/{path.name}": path.read_bytes() for path in folder.iterdir()}
        config = StreamConfig(cache=str(tmp_path), attempts=1)
        for location in (server.url("d"), server.url("d/shard-{000000..000004}.tar")):
            assert ids(ShardDataset(location, seed=4, config=config)) == ids(ShardDataset(folder, seed=4))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rank": 1}, "give rank and world_size, or neither"),
        ({"rank": 2, "world_size": 2}, "rank must be 0 to 1"),
        ({"on_bad": "ignore"}, "on_bad must be"),
        ({"epoch": -1}, "epoch must be 0 or more"),
    ],
)
def test_contradictory_options_are_refused(folder: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ShardDataset(folder, **options)


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=f"nothing matches {missing}"):
            ShardDataset(missing)
    write_index(tmp_path, [])
    with pytest.raises(ValueError, match=r"index\.json names no shards"):
        ShardDataset(tmp_path)


def spoil(folder: Path, ids: list[int]) -> None:
    """Change some examples so that their checksums are wrong."""
    for path in folder.glob("*.tar"):
        data = path.read_bytes()
        for id in ids:
            data = data.replace(f'"id": "{id}"'.encode(), f'"di": "{id}"'.encode())
        path.write_bytes(data)


def test_bad_examples_raise_or_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path)
    spoil(tmp_path, [4, 11])
    with pytest.raises(ShardError, match=r"shard-000000\.tar, example '4'.*checksum"):
        ids(ShardDataset(tmp_path, shuffle=False))
    dataset = ShardDataset(tmp_path, shuffle=False, on_bad="skip")
    for _ in range(2):  # `skipped` is that of the last time.
        assert ids(dataset) == [n for n in range(COUNT) if n not in (4, 11)]
        assert [(Path(bad.shard).name, bad.key, bad.kind) for bad in dataset.skipped] == [
            ("shard-000000.tar", "4", "checksum"),
            ("shard-000002.tar", "11", "checksum"),
        ]
    assert "example '11'" in caplog.text


def test_ranks_come_from_the_process_group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ShardDataset(folder, shuffle=False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    odd = list(range(1, COUNT, 2))
    assert ids(dataset) == odd
    sent = pickle.dumps(dataset)
    monkeypatch.undo()  # A worker process that is started afresh has no process group.
    assert ids(pickle.loads(sent)) == odd


def test_examples_come_as_they_were_written(folder: Path) -> None:
    assert next(iter(ShardDataset(folder, shuffle=False))) == make("0")
