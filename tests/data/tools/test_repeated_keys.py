"""Finding keys that occur again is exact, in little memory."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v1lit.data.tools import repeated as repeated_module
from v1lit.data.tools.repeated import KeyPlace, RepeatedKeys, hash_keys


def expected(shards: list[list[str]]) -> set[tuple[KeyPlace, KeyPlace]]:
    places = defaultdict(list)
    for shard, keys in enumerate(shards):
        for number, key in enumerate(keys):
            places[key].append(KeyPlace(shard, number))
    return {(found[0], later) for found in places.values() for later in found[1:]}


@pytest.mark.slow
@given(st.lists(st.lists(st.sampled_from([f"key {n}" for n in range(40)]), max_size=12), max_size=8))
def test_all_repeated_keys_are_found_also_on_disk(shards: list[list[str]]) -> None:
    for buffer in (1, 7, 2**20):
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            patch.setattr(repeated_module, "BUFFER", buffer)
            repeated = RepeatedKeys(Path(folder))
            for shard, keys in enumerate(shards):
                repeated.add(shard, hash_keys(keys))
            assert sorted(repeated.pairs()) == sorted(expected(shards))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeated_module, "BUFFER", 5_000)
    random = np.random.default_rng(0)
    repeated = RepeatedKeys(tmp_path)
    tracemalloc.start()
    for shard in range(200):  # 400,000 keys, 9.6 MB
        repeated.add(shard, random.integers(2**64, size=(2_000, 2), dtype=np.uint64))
    assert list(repeated.pairs()) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_keys_that_are_not_unicode_are_told_apart() -> None:
    hashes = hash_keys(["\udc80", "\udc81", "a"])
    assert hashes.shape == (3, 2)
    assert len(set(map(tuple, hashes.tolist()))) == 3
