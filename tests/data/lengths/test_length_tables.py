"""Lengths for filling rows: measured once, kept where they belong, and never those of other shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.faulty_server import FaultyServer
from helpers.tiny_runs import ENCODING, fit, make_data, names, processor, tokens, without_index, written

from v1lit.backbones.qwen import Qwen25VL
from v1lit.data.config import EncodingConfig, PackingConfig, StreamConfig
from v1lit.data.lengths import store as length_tables
from v1lit.data.lengths.length import LengthOptions
from v1lit.data.lengths.store import known_table, measured_table, write_lengths
from v1lit.data.lengths.table import LengthTable
from v1lit.data.sampling.epoch import Progress
from v1lit.data.shards import index_shards
from v1lit.data.shards.catalog import Catalog

PACKED = PackingConfig(240)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "shards", 12)


def catalog_of(folder: Path | str, tmp_path: Path) -> Catalog:
    return Catalog(folder, StreamConfig(cache=str(tmp_path / "cache"), attempts=1))


def known(folder: Path, tmp_path: Path, encoding: EncodingConfig = ENCODING) -> LengthTable | None:
    return known_table(catalog_of(folder, tmp_path), LengthOptions(processor(), encoding))


def measured(folder: Path | str, tmp_path: Path) -> LengthTable | None:
    return measured_table(catalog_of(folder, tmp_path), LengthOptions(processor(), ENCODING))


def forbid(monkeypatch: pytest.MonkeyPatch, *places: tuple[Any, str]) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("must not be called")

    for where, name in places:
        monkeypatch.setattr(where, name, never)


def test_a_packed_run_measures_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert known(folder, tmp_path) is None
    whole = fit(make_data(folder, tmp_path, packing=PACKED), tmp_path).batches
    assert caplog.text.count(f"measuring the lengths of 12 examples in {folder}, once") == 1
    table = known(folder, tmp_path)
    assert table is not None
    assert table.tokens.tolist() == [tokens()] * 12
    (path,) = (tmp_path / "cache").rglob("lengths-*")
    left = [file for file in path.parent.iterdir() if file.suffix != ".lock"]
    assert left == [path]  # Nothing half-made.
    forbid(monkeypatch, (length_tables, "measure_lengths"), (LengthOptions, "measure"))
    assert fit(make_data(folder, tmp_path, packing=PACKED), tmp_path).batches == whole
    assert caplog.text.count("measuring the lengths") == 1


def test_only_runs_that_need_lengths_measure_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        forbid(patch, (length_tables, "measure_lengths"), (LengthOptions, "measure"))
        fit(make_data(folder, tmp_path), tmp_path)
        fit(make_data(folder, tmp_path, group_by_length=4), tmp_path)  # Flat batches have no padding.
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(Qwen25VL, "packs", False, raising=False)
    make_data(folder, tmp_path, group_by_length=4).prepare_data()
    assert known(folder, tmp_path) is not None


def test_a_table_beside_the_index_is_found_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lengths(folder, LengthOptions(processor(), ENCODING), workers=1)
    assert path.parent == folder
    forbid(monkeypatch, (length_tables, "measure_lengths"))
    for place in (folder, Path(shutil.copytree(folder, tmp_path / "copy"))):  # It goes with the shards.
        table = measured(place, tmp_path)
        assert table is not None
        assert table._file is not None
        assert table._file[0].parent == place
    assert not (tmp_path / "cache").exists()
    # For the same shards by a pattern, there is no folder to look into.
    assert known_table(catalog_of(f"{folder}/*.tar", tmp_path), LengthOptions(processor(), ENCODING)) is None


def test_an_index_elsewhere_keeps_its_table_beside_it(folder: Path, tmp_path: Path) -> None:
    index_shards(str(without_index(folder)), str(tmp_path / "index"), workers=1)
    path = write_lengths(tmp_path / "index", LengthOptions(processor(), ENCODING), workers=1)
    assert path.parent == tmp_path / "index"
    assert known(tmp_path / "index", tmp_path) is not None


@pytest.mark.parametrize("beside", [True, False])
def test_a_table_of_other_shards_is_not_used(folder: Path, tmp_path: Path, beside: bool) -> None:
    """Also where they have the same names and as many examples."""
    if beside:
        write_lengths(folder, LengthOptions(processor(), ENCODING), workers=1)
    else:
        measured(folder, tmp_path)
    assert known(folder, tmp_path) is not None
    for path in folder.glob("shard-*"):
        path.unlink()
    written(folder, 12, first=100)
    assert known(folder, tmp_path) is None
    assert measured(folder, tmp_path) is not None


def test_a_table_for_another_encoding_is_not_used(folder: Path, tmp_path: Path) -> None:
    write_lengths(folder, LengthOptions(processor(), ENCODING), workers=1)
    for other in (EncodingConfig(max_tokens=100, coordinates=False), EncodingConfig(max_tokens=120)):
        assert known(folder, tmp_path, other) is None


def test_a_damaged_table_is_told(folder: Path, tmp_path: Path) -> None:
    path = write_lengths(folder, LengthOptions(processor(), ENCODING), workers=1)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"not a usable table of lengths.*measure the lengths again"):
        known(folder, tmp_path)


def test_with_a_table_planning_reads_no_shard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lengths(folder, LengthOptions(processor(), ENCODING), workers=1)
    loader = make_data(folder, tmp_path, packing=PACKED).train_dataloader()
    forbid(monkeypatch, (Catalog, "open"), (Catalog, "fetch"), (Catalog, "index"))
    rows = loader.steps.rows(Progress(0, layout=loader.steps.layout))
    assert sum(len(row.refs) for row in rows) == 12


def test_without_a_table_the_same_rows_are_planned_by_reading(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("v1lit.data.loading.planning.measured_table", lambda *args: None)
        read = fit(make_data(folder, tmp_path, packing=PACKED), tmp_path).batches
    assert known(folder, tmp_path) is None
    assert read == fit(make_data(folder, tmp_path, packing=PACKED), tmp_path).batches


def test_remote_shards_are_not_fetched_to_be_measured(folder: Path, tmp_path: Path) -> None:
    with FaultyServer() as server:
        server.files = {f"d/{path.name}": path.read_bytes() for path in folder.iterdir()}
        assert measured(server.url("d"), tmp_path) is None
        assert not any(request.path.endswith(".tar") for request in server.requests)
        data = make_data(server.url("d"), tmp_path, packing=PACKED)
        batches = fit(data, tmp_path).batches
    assert sorted(id for batch in batches for id in batch) == names(12)
    assert batches == fit(make_data(folder, tmp_path, packing=PACKED), tmp_path).batches


def test_shards_without_an_index_are_not_measured(folder: Path, tmp_path: Path) -> None:
    assert measured(without_index(folder), tmp_path) is None
    with pytest.raises(ValueError, match="no local folder with an index"):
        write_lengths(folder, LengthOptions(processor(), ENCODING))


def test_a_shard_that_cannot_be_opened_leaves_the_lengths_to_reading(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "shard-000001.tar").unlink()
    assert measured(folder, tmp_path) is None
    assert "lengths are measured while examples are read: shard" in caplog.text
    assert known(folder, tmp_path) is None
