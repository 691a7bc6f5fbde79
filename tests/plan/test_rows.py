"""Rows of data on paper are those that training reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from helpers.shard_cases import make
from helpers.tiny_runs import ENCODING, make_data

from v1lit.data.config import MixtureConfig, PackingConfig, SourceConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.lengths import measuring
from v1lit.data.lengths.length import LengthOptions
from v1lit.data.lengths.store import write_lengths
from v1lit.data.shards import ShardWriter, write_index
from v1lit.plan import rows as plan_rows
from v1lit.plan.rows import LengthsUnknown, rows_of

COUNT = 180
PACKED = PackingConfig(240)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards of examples of three lengths, without a table."""
    folder = tmp_path / "shards"
    with ShardWriter(folder, max_examples=20) as writer:
        for number in range(COUNT):
            writer.write(make(f"e{number:03}", images=number % 3))
    write_index(folder, writer.shards)
    return folder


def measured(data: V1DataModule) -> V1DataModule:
    write_lengths(data.source.folder, LengthOptions(data.processor, data.encoding, data.map), workers=1)
    return data


@pytest.mark.parametrize("options", [{}, {"packing": PACKED}], ids=["counted", "filled"])
def test_rows_hold_what_training_reads(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    data = measured(make_data(folder, tmp_path, **options))
    rows = rows_of(data, 1)
    read = list(data.train_dataloader())
    assert (rows.steps, rows.exact, rows.of_epoch) == (len(read), True, COUNT)
    assert rows.examples == pytest.approx(fmean(len(batch) for batch in read))
    assert rows.tokens == pytest.approx(fmean(batch.real_tokens for batch in read))
    pairs = [sum(length**2 for length in batch.segment_lengths or ()) for batch in read]
    assert rows.pairs == pytest.approx(fmean(pairs))
    assert rows.fill == (pytest.approx(rows.tokens / 240) if options else None)


def test_many_micro_batches_and_many_rows_are_reckoned_from_some(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = measured(make_data(folder, tmp_path, packing=PACKED))
    whole = rows_of(data, 2)
    monkeypatch.setattr(plan_rows, "MOST_ROWS", 20)
    part = rows_of(data, 2)
    monkeypatch.setattr(plan_rows, "MOST_MICRO_BATCHES", 1)
    fewer = rows_of(data, 2)
    assert (whole.exact, part.exact, fewer.exact) == (True, False, False)
    for some in (part, fewer):
        assert some.steps == pytest.approx(whole.steps, rel=0.15)
        assert some.tokens == pytest.approx(whole.tokens, rel=0.1)


def cases(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    yield {}, "shards has no table of lengths"
    yield {"source": SourceConfig("shards", "https://nowhere.invalid/data")}, "data is not on this machine"
    mixture = [MixtureConfig(str(folder)), MixtureConfig("s3://nowhere/shard-{000..009}.tar")]
    yield {"source": SourceConfig("shards", mixture=mixture)}, "tar is not on this machine"
    yield {"source": SourceConfig("shards", str(folder / "none"))}, "none holds no shards"
    yield {"source": SourceConfig("webdataset", path=str(folder / "*.tar"))}, "data.source is a stream"


def test_lengths_that_are_not_at_hand_are_neither_measured_nor_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("must not be called")

    monkeypatch.setattr(measuring, "_measure_shard", never)
    for options, why in cases(folder):
        with pytest.raises(LengthsUnknown, match=why):
            rows_of(make_data(folder, tmp_path, **options), 2)


def test_a_table_of_another_recipe_or_a_damaged_one_is_not_used(folder: Path, tmp_path: Path) -> None:
    measured(make_data(folder, tmp_path))
    other = make_data(folder, tmp_path, encoding=replace(ENCODING, max_tokens=119))
    with pytest.raises(LengthsUnknown, match="is of another recipe"):
        rows_of(other, 2)
    (table,) = folder.glob("lengths-*.safetensors")
    table.write_bytes(table.read_bytes()[:-3])
    with pytest.raises(LengthsUnknown, match="not a usable table of lengths"):
        rows_of(make_data(folder, tmp_path), 2)
