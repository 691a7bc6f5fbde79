"""Finding shards: folders, files and patterns, near and far, with an index and without."""

from __future__ import annotations

import pickle
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from helpers.faulty_server import FaultyServer, hang_up, serve, status
from helpers.tiny_runs import names, without_index, written

from v1lit.data.config import MixtureConfig, SourceConfig, StreamConfig
from v1lit.data.errors import ShardError
from v1lit.data.remote import RemoteError
from v1lit.data.shards import index_shards, open_shards, reader, write_index
from v1lit.data.shards.catalog import Catalog
from v1lit.data.shards.open_shards import CatalogShards
from v1lit.data.sources.registry import has_train, has_val, prepare_source, train_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards of 5, 5 and 2."""
    return written(tmp_path / "a", 12)


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        server.files = {f"a/{path.name}": path.read_bytes() for path in folder.iterdir()}
        yield server


def config_of(tmp_path: Path) -> StreamConfig:
    return StreamConfig(cache=str(tmp_path / "cache"), attempts=1, timeout=5)


def keys(catalog: Catalog) -> list[str]:
    """Names of all examples, in order."""
    found = []
    for number in range(len(catalog.files)):
        with catalog.open(number) as shard:
            found += shard.keys
    return found


# ------------------------------------------------------------------ local


@pytest.mark.parametrize(
    ("location", "numbers", "indexed"),
    [
        ("a", range(12), True),
        ("a/", range(12), True),
        ("a/shard-000001.tar", range(5, 10), True),
        ("a/*.tar", range(12), True),
        ("a/shard-00000[12].tar", range(5, 12), True),
        ("a/shard-{000000,000002}.tar", [*range(5), 10, 11], True),
        ("a/shard-{000001..000002}.tar", range(5, 12), True),
        ("b", range(20, 27), False),
        ("b/shard-000001.tar", [25, 26], False),
        ("?/shard-000001.tar", [*range(5, 10), 25, 26], False),
        ("{b,a}/shard-000001.tar", [*range(5, 10), 25, 26], False),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_shards_are_found_in_order(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    location: str,
    numbers: range | list[int],
    indexed: bool,
    absolute: bool,
) -> None:
    without_index(written(tmp_path / "b", 7, first=20))
    monkeypatch.chdir(tmp_path)
    catalog = Catalog(f"{tmp_path}/{location}" if absolute else location)
    assert keys(catalog) == [f"e{number:03}" for number in numbers]
    assert catalog.indexed == indexed
    assert catalog.examples == (len(numbers) if indexed else None)
    assert not catalog.remote
    if indexed:
        assert catalog.starts().tolist() == np.cumsum([0, *catalog.counts]).tolist()
        assert catalog.starts()[-1] == len(numbers)


def test_a_file_in_the_working_folder_finds_its_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for location in ("shard-000001.tar", "./shard-000001.tar", "*1.tar"):
        assert Catalog(location).counts.tolist() == [5]
    assert Catalog(".").counts.tolist() == [5, 5, 2]


def test_of_several_folders_some_may_have_an_index(folder: Path, tmp_path: Path) -> None:
    without_index(written(tmp_path / "b", 7, first=20))
    catalog = Catalog(tmp_path / "?" / "*.tar")
    assert catalog.counts.tolist() == [5, 5, 2, -1, -1]
    assert catalog.index(0) is not None
    assert catalog.index(3) is None
    assert keys(catalog) == names(12) + names(7, 20)


def test_a_shard_that_the_index_does_not_name_is_read_without(folder: Path) -> None:
    shutil.copy(folder / "shard-000002.tar", folder / "shard-000009.tar")
    assert Catalog(folder).counts.tolist() == [5, 5, 2]
    assert Catalog(folder / "*.tar").counts.tolist() == [5, 5, 2, -1]


def test_an_index_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    index_shards(str(without_index(folder)), str(tmp_path / "index"), workers=1)
    catalog = Catalog(tmp_path / "index")
    assert catalog.counts.tolist() == [5, 5, 2]
    assert catalog.files[0] == str(folder / "shard-000000.tar")
    assert keys(catalog) == names(12)
    assert Catalog(folder).counts.tolist() == [-1, -1, -1]


def test_with_an_index_no_headers_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "scan_headers", None)
    catalog = Catalog(folder)
    assert len(catalog.open(2)) == 2
    without_index(folder)
    with pytest.raises(TypeError):
        Catalog(folder).open(2)


def test_the_content_tells_shards_apart_and_not_where_they_lie(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert Catalog(folder).content == Catalog(tmp_path / "copy").content
    assert Catalog(folder).content != Catalog(written(tmp_path / "b", 12, first=1)).content


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("missing", "nothing matches .*missing.*is the path right"),
        ("empty", "nothing matches .*empty"),
        ("a/other-*.tar", r"nothing matches .*other-\*.tar"),
        ("a/shard-{000002..000003}.tar", "nothing matches .*shard-000003.tar .*of .*000002..000003"),
        ("a/shard-{0,1.tar", "nothing matches .*|braces do not match"),
        ("nothing", "nothing: its index.json names no shards"),
        ("broken", "index.json is damaged"),
        ("nosuch://host/shard-000000.tar", "nosuch"),
    ],
)
def test_nothing_found_is_told(folder: Path, tmp_path: Path, location: str, message: str) -> None:
    for name in ("empty", "nothing", "broken"):
        (tmp_path / name).mkdir()
    write_index(tmp_path / "nothing", [])
    (tmp_path / "broken" / "index.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        Catalog(location if "://" in location else f"{tmp_path}/{location}").open(0)


def test_a_shard_that_is_gone_is_told_when_it_is_opened(folder: Path) -> None:
    (folder / "shard-000001.tar").unlink()
    catalog = Catalog(folder)
    assert catalog.counts.tolist() == [5, 5, 2]
    with pytest.raises(ShardError, match=r"shard-000001.tar: cannot be opened") as caught:
        catalog.open(1)
    assert caught.value.kind == "unreachable"


# ------------------------------------------------------------------ remote


@pytest.mark.parametrize("location", ["a", "a/shard-{000000..000002}.tar"])
def test_shards_on_a_server_are_fetched_when_they_are_opened(
    server: FaultyServer, tmp_path: Path, location: str
) -> None:
    catalog = Catalog(server.url(location), config_of(tmp_path))
    assert catalog.remote
    assert catalog.counts.tolist() == [5, 5, 2]
    assert not any(request.path.endswith(".tar") for request in server.requests)
    with catalog.open(1) as shard:
        assert shard.keys == names(5, 5)
        assert shard.name == server.url("a/shard-000001.tar")
    assert keys(catalog) == names(12)
    assert sum(request.path.endswith(".tar") for request in server.requests) == 3


def test_opening_a_remote_shard_again_asks_for_nothing(server: FaultyServer, tmp_path: Path) -> None:
    """Where many are in use, each is closed and opened over and over."""
    catalog = Catalog(server.url("a"), config_of(tmp_path))
    catalog.open(1).close()
    asked = len(server.requests)
    for _ in range(3):
        catalog.open(1).close()
    assert len(server.requests) == asked


def test_an_index_here_of_shards_there(server: FaultyServer, folder: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    for name in [name for name in server.files if not name.endswith(".tar")]:
        del server.files[name]
    location = server.url("a/shard-{000000..000002}.tar")
    plain = Catalog(location, config)
    assert plain.counts.tolist() == [-1, -1, -1]
    assert keys(plain) == names(12)
    index_shards(location, str(tmp_path / "index"), workers=1)
    catalog = Catalog(tmp_path / "index", config)
    assert catalog.counts.tolist() == [5, 5, 2]
    assert catalog.remote
    assert keys(catalog) == names(12)


def test_a_file_that_vanishes_from_the_cache_is_fetched_again(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes room between fetching and opening."""
    catalog = Catalog(server.url("a"), config_of(tmp_path))
    fetch, gone = Catalog.fetch, []

    def vanishing(self: Catalog, shard: int) -> Path:
        path = fetch(self, shard)
        if len(gone) < times:
            gone.append(path)
            path.unlink()
        return path

    monkeypatch.setattr(Catalog, "fetch", vanishing)
    times = 1
    assert catalog.open(0).keys == names(5)
    times = 1_000_000
    with pytest.raises(ShardError, match="cannot be opened") as caught:
        catalog.open(1)
    assert caught.value.kind == "unreachable"


def test_a_server_that_does_not_answer_is_told(server: FaultyServer, tmp_path: Path) -> None:
    catalog = Catalog(server.url("a"), config_of(tmp_path))
    server.always["a/shard-000001.tar"] = hang_up
    with pytest.raises(RemoteError, match="not read in 1 attempt"):
        catalog.open(1)
    server.always["a/index.json"] = hang_up
    with pytest.raises(RemoteError, match=r"index.json: not read in 1 attempt,"):
        Catalog(server.url("a"), config_of(tmp_path))


def count(catalog: Catalog) -> list[int]:
    return [len(catalog.open(number)) for number in range(len(catalog.files))]


@pytest.mark.slow
def test_a_catalog_goes_to_other_processes(server: FaultyServer, folder: Path, tmp_path: Path) -> None:
    catalogs = [Catalog(server.url("a"), config_of(tmp_path)), Catalog(folder)]
    catalogs[0].open(0).close()
    assert catalogs[0].cache is not None
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert list(pool.map(count, catalogs)) == [[5, 5, 2]] * 2
    assert keys(pickle.loads(pickle.dumps(catalogs[0]))) == names(12)


# ------------------------------------------------------------------ signed URLs


@pytest.mark.parametrize("code", [401, 403])
def test_shards_are_read_without_an_index_that_is_refused(
    server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """S3 refuses what is missing to those who may not list; a signature is of one file."""
    server.always["a/index.json?sig=x/y"] = status(code)
    catalog = Catalog(server.url("a/shard-{000000..000002}.tar?sig=x/y"), config_of(tmp_path))
    assert keys(catalog) == names(12)
    assert not catalog.indexed
    [line] = [record.getMessage() for record in caplog.records]
    assert f"index.json?*** is refused (status {code})" in line
    assert "x/y" not in line


def test_a_token_is_sent_for_the_index_beside_a_pattern_too(server: FaultyServer, tmp_path: Path) -> None:
    for name in server.files:
        server.always[name], server.always[f"{name}?token=x/y"] = status(403), serve
    location = server.url("a/shard-{000001..000002}.tar?token=x/y")
    catalog = Catalog(location, config_of(tmp_path))
    assert catalog.counts.tolist() == [5, 2]
    assert keys(catalog) == names(12)[5:]
    assert has_train(SourceConfig(folder=location))
    assert not has_val(SourceConfig(folder=location))


def test_a_folder_whose_index_is_refused_is_an_error(server: FaultyServer, tmp_path: Path) -> None:
    server.always["a/index.json"] = status(403)
    with pytest.raises(RemoteError, match="status 403"):
        Catalog(server.url("a"), config_of(tmp_path))


# ------------------------------------------------------------------ open shards


def test_of_many_open_shards_the_one_unused_for_longest_is_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_shards, "MAX_OPEN_SHARDS", 2)
    shards = CatalogShards([Catalog(folder)])
    first, second = shards.get(0, 0), shards.get(0, 1)
    assert shards.get(0, 0) is first
    shards.get(0, 2)
    assert shards.get(0, 0) is first
    assert shards.get(0, 1) is not second
    assert second._file._file.closed


def test_a_broken_shard_is_tried_once_and_its_error_does_not_grow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "shard-000001.tar").unlink()
    shards = CatalogShards([Catalog(folder)])
    opened: list[int] = []
    open_one = Catalog.open
    monkeypatch.setattr(Catalog, "open", lambda self, n: opened.append(n) or open_one(self, n))
    depths = set()
    for _ in range(5):
        with pytest.raises(ShardError) as caught:
            shards.get(0, 1)
        depths.add(len(caught.traceback))
    assert opened == [1]
    assert len(depths) <= 2  # the first time, and later


def test_threads_open_shards_of_one_catalog(folder: Path) -> None:
    catalog = Catalog(folder)
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(keys(catalog))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [names(12)] * 4


# ------------------------------------------------------------------ from the configuration


def test_a_folder_holds_its_training_shards_below_or_itself(folder: Path, tmp_path: Path) -> None:
    assert train_sources(SourceConfig(folder=str(folder))) == [MixtureConfig(str(folder))]
    assert not has_val(SourceConfig(folder=str(folder)))
    written(folder / "train", 2)
    written(folder / "val", 2)
    assert train_sources(SourceConfig(folder=str(folder))) == [MixtureConfig(str(folder / "train"))]
    assert has_val(SourceConfig(folder=str(folder)))


@pytest.mark.parametrize("location", ["a/*.tar", "a/shard-{000000..000001}.tar", "a/shard-000000.tar"])
def test_instead_of_a_folder_a_pattern_may_name_the_training_shards(
    folder: Path, tmp_path: Path, location: str
) -> None:
    source = SourceConfig(folder=f"{tmp_path}/{location}")
    assert train_sources(source) == [MixtureConfig(f"{tmp_path}/{location}")]
    assert has_train(source)
    assert not has_val(source)
    prepare_source(source)


def test_no_shards_in_the_folder_of_a_recipe_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.source.folder is .*neither it nor its train/ holds shards"):
        prepare_source(SourceConfig(folder=str(tmp_path)))
