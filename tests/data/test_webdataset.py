"""`ExampleDataset`: our shards as a pipeline of the webdataset package."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds
from helpers.shard_cases import make, members_of, tar
from helpers.shard_cases import write as write_shards

from v1lit.data.errors import ShardError
from v1lit.data.example import Example
from v1lit.data.webdataset import ExampleDataset

COUNT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), [f"e{n:02}" for n in range(COUNT)], max_examples=3)


def ids(examples: Iterable[Any]) -> list[str]:
    return [example.id for example in examples]


def ids_of_batch(batch: list[Example]) -> list[str]:
    return ids(batch)


def test_the_examples_come_in_the_order_of_the_shards(folder: Path) -> None:
    dataset = ExampleDataset(folder)
    assert isinstance(dataset, wds.WebDataset)
    assert ids(dataset) == [f"e{n:02}" for n in range(COUNT)]
    assert next(iter(dataset)) == make("e00")


def test_it_is_composed_like_any_other(folder: Path) -> None:
    dataset = (
        ExampleDataset(folder)
        .select(lambda example: example.id != "e03")
        .map(lambda example: replace(example, id=example.id.upper()))
        .shuffle(5, seed=1)
    )
    assert sorted(ids(dataset)) == [f"E{n:02}" for n in range(COUNT) if n != 3]
    assert ids(dataset) != sorted(ids(dataset))


@pytest.mark.parametrize("workers", [0, 2, 6])
def test_workers_share_the_shards(folder: Path, workers: int) -> None:
    dataset = ExampleDataset(folder, shuffle_shards=True).batched(2, collation_fn=ids_of_batch)
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=workers)
    assert sorted(id for batch in loader for id in batch) == [f"e{n:02}" for n in range(COUNT)]


def test_shards_are_permuted_by_a_seed(folder: Path) -> None:
    orders = [ids(ExampleDataset(folder, shuffle_shards=True, seed=seed)) for seed in (0, 0, 1, 2)]
    assert orders[0] == orders[1]
    assert len(set(map(tuple, orders))) > 1
    assert all(sorted(order) == [f"e{n:02}" for n in range(COUNT)] for order in orders)


@pytest.mark.parametrize("kind", ["pyd", "pickle", "pkl", "pth", "npy", "npz"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_example_is_raised_or_counted_and_nothing_is_unpickled(
    tmp_path: Path, kind: str, workers: int
) -> None:
    touched = tmp_path / "touched"
    bomb = pickle.dumps(Bomb(str(touched)))
    tar(tmp_path / "s.tar", [*members_of("a"), ("b." + kind, bomb), *members_of("b"), *members_of("c")])
    dataset = ExampleDataset(tmp_path / "s.tar", on_bad="skip")
    loader = wds.WebLoader(
        dataset.batched(1, collation_fn=ids_of_batch), batch_size=None, num_workers=workers
    )
    assert [id for batch in loader for id in batch] in (["a", "c"], [])
    assert dataset.skipped == 1
    with pytest.raises(ShardError, match=r"s\.tar, example 'b'"):
        list(ExampleDataset(tmp_path / "s.tar"))
    assert not touched.exists()


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_a_damaged_shard_is_raised_or_counted(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", members_of("a"))
    (tmp_path / "b.tar").write_bytes(b"no tar" * 200)
    assert ids(dataset := ExampleDataset(f"{tmp_path}/*.tar", on_bad="skip")) == ["a"]
    assert dataset.skipped == 1
    with pytest.raises(ShardError, match=r"b\.tar"):
        list(ExampleDataset(f"{tmp_path}/*.tar"))


def test_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing matches"):
        ExampleDataset(tmp_path / "*.tar")
    with pytest.raises(ValueError, match="on_bad must be"):
        ExampleDataset(tmp_path, on_bad="ignore")  # type: ignore[arg-type]
