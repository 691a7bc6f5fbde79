"""Every example once per epoch over all readers, in an order that seed and epoch alone decide."""

from __future__ import annotations

import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from v1lit.data import stream
from v1lit.data.example import Example, Message
from v1lit.data.shards import ShardError, ShardWriter, write_index
from v1lit.data.stream import ShardDataset

COUNT = 23


def write(folder: Path, count: int = COUNT, max_examples: int = 5, first: int = 0) -> Path:
    with ShardWriter(folder, max_examples=max_examples) as writer:
        for number in range(first, first + count):
            messages = (Message("user", f"{number}?"), Message("assistant", "Yes."))
            writer.write(Example(id=str(number), messages=messages))
    write_index(folder, writer.shards)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shards"))


def ids(dataset: ShardDataset) -> list[int]:
    return [int(example.id) for example in dataset]


def first(items: list[Example]) -> Example:
    return items[0]


def through_workers(dataset: ShardDataset, workers: int) -> list[int]:
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, collate_fn=first)
    return [int(example.id) for example in loader]


def test_unshuffled_is_the_written_order(folder: Path) -> None:
    dataset = ShardDataset(folder, shuffle=False)
    assert dataset.num_examples == COUNT
    assert ids(dataset) == list(range(COUNT))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, COUNT])
@pytest.mark.parametrize("window", [1, 4, 10_000])
def test_ranks_share_an_epoch_without_gaps_or_doubles(folder: Path, world_size: int, window: int) -> None:
    parts = [
        ids(ShardDataset(folder, seed=3, shuffle_window=window, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    joined = [number for part in parts for number in part]
    assert sorted(joined) == list(range(COUNT))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert joined == ids(ShardDataset(folder, seed=3, shuffle_window=window))  # One order for any split.


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_workers_share_the_part_of_their_rank(folder: Path, workers: int, rank: int) -> None:
    dataset = ShardDataset(folder, rank=rank, world_size=2)
    assert sorted(through_workers(dataset, workers)) == sorted(ids(dataset))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_more_readers_than_shards_or_examples(tmp_path: Path) -> None:
    write(tmp_path, count=3, max_examples=100)
    assert sorted(through_workers(ShardDataset(tmp_path), 4)) == [0, 1, 2]
    with pytest.raises(ValueError, match="3 examples cannot be split over 4 ranks"):
        list(ShardDataset(tmp_path, rank=0, world_size=4))


def test_seed_and_epoch_decide_the_order(folder: Path) -> None:
    dataset = ShardDataset(folder, seed=1)
    orders = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        assert dataset.epoch == epoch
        orders.append(ids(dataset))
        assert ids(dataset) == orders[-1]
    assert len({tuple(order) for order in orders}) == 3
    dataset.set_epoch(1)
    assert ids(dataset) == orders[1]
    assert ids(ShardDataset(folder, seed=2)) != orders[0]
    assert ids(ShardDataset(folder, seed=1)) == orders[0]
    assert all(sorted(order) == list(range(COUNT)) for order in orders)


def test_repeating_goes_on_with_the_next_epochs(folder: Path) -> None:
    single, endless = (ShardDataset(folder, seed=5, repeat=repeat) for repeat in (False, True))
    expected = []
    for epoch in (2, 3, 4):
        single.set_epoch(epoch)
        expected += ids(single)
    endless.set_epoch(2)
    examples = iter(endless)
    assert [int(next(examples).id) for _ in expected] == expected


def test_running_workers_hear_of_a_new_epoch(folder: Path) -> None:
    dataset = ShardDataset(folder, seed=1)
    loader = DataLoader(dataset, batch_size=1, num_workers=1, collate_fn=first, persistent_workers=True)
    orders = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        orders.append([int(example.id) for example in loader])
        assert orders[-1] == ids(dataset)
    assert orders[0] != orders[1]


def test_window_bounds_how_far_examples_move(tmp_path: Path) -> None:
    write(tmp_path, count=40, max_examples=40)
    dataset = ShardDataset(tmp_path, shuffle_window=6)
    order = dataset.order(0)
    assert np.abs(order - np.arange(40)).max() <= 6
    assert (order != np.arange(40)).mean() > 0.5
    assert (ShardDataset(tmp_path, shuffle_window=1).order(0) == np.arange(40)).all()


def test_shards_are_shuffled_too(tmp_path: Path) -> None:
    write(tmp_path, count=40, max_examples=4)
    order = ShardDataset(tmp_path, shuffle_window=1).order(0)
    assert sorted(order) == list(range(40))
    assert (np.diff(order) == 1).sum() >= 30  # Within a shard in order,
    assert list(order) != list(range(40))  # but not the shards.


def test_few_files_are_open_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_OPEN_SHARDS", 1)
    assert sorted(ids(ShardDataset(folder))) == list(range(COUNT))


def test_files_and_patterns(folder: Path, tmp_path: Path) -> None:
    one = str(folder / "shard-000001.tar")
    assert ids(ShardDataset(one, shuffle=False)) == [5, 6, 7, 8, 9]
    shutil.copy(one, tmp_path / "lonely.tar")  # No index beside it: counted.
    assert ShardDataset(tmp_path / "*.tar").num_examples == 5
    write(tmp_path / "a", 4, first=100)
    write(tmp_path / "b", 3, first=200)
    both = ShardDataset(str(tmp_path / "?" / "shard-*.tar"), shuffle=False)
    assert ids(both) == [100, 101, 102, 103, 200, 201, 202]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rank": 1}, "give rank and world_size, or neither"),
        ({"rank": 2, "world_size": 2}, "rank must be 0 to 1"),
        ({"shuffle_window": 0}, "shuffle_window must be at least 1"),
        ({"on_bad": "ignore"}, "on_bad must be"),
    ],
)
def test_contradictory_options_are_refused(folder: Path, options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ShardDataset(folder, **options)


def test_nothing_to_read_is_an_error(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder nor a file"):
        ShardDataset(tmp_path / "missing")
    with pytest.raises(ValueError, match="incomplete"):
        ShardDataset(tmp_path)
    write_index(tmp_path, [])
    with pytest.raises(ValueError, match="hold no examples"):
        ShardDataset(tmp_path)
    with pytest.raises(ValueError, match="epoch must be 0 or more"):
        ShardDataset(folder).set_epoch(-1)


def replace_texts(folder: Path, numbers: list[int]) -> None:
    """Spoil some examples, leaving a sound tar file of the same size."""
    for path in folder.glob("*.tar"):
        data = path.read_bytes()
        for number in numbers:
            data = data.replace(f'"content": "{number}?"'.encode(), f'"kontent": "{number}?"'.encode())
        path.write_bytes(data)


def test_bad_examples_raise_or_are_skipped_up_to_a_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    replace_texts(tmp_path, [4, 11])
    with pytest.raises(ShardError, match=r"shard-000000\.tar, example '4'"):
        ids(ShardDataset(tmp_path, shuffle=False))
    dataset = ShardDataset(tmp_path, shuffle=False, on_bad="skip")
    assert ids(dataset) == [n for n in range(COUNT) if n not in (4, 11)]
    assert [(Path(bad.shard).name, bad.key) for bad in dataset.skipped] == [
        ("shard-000000.tar", "4"),
        ("shard-000002.tar", "11"),
    ]
    assert "example '11'" in caplog.text
    with pytest.raises(ValueError, match=r"more than max_bad=1 .*'11'"):
        ids(ShardDataset(tmp_path, shuffle=False, on_bad="skip", max_bad=1))


def test_shard_that_changed_since_the_index_is_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    with tarfile.open(tmp_path / "shard-000000.tar", "w:"):
        pass
    with pytest.raises(ShardError, match="holds 0 examples, but 5 were expected"):
        ids(ShardDataset(tmp_path, shuffle=False, on_bad="skip"))


def test_ranks_come_from_the_process_group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ShardDataset(folder, shuffle=False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    second_half = list(range(COUNT // 2, COUNT))
    assert ids(dataset) == second_half
    sent = pickle.dumps(dataset)
    monkeypatch.undo()  # A worker process that is started afresh has no process group.
    assert ids(pickle.loads(sent)) == second_half
