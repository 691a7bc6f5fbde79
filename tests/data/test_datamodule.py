"""The data module: its options, what it finds, and Lightning's hooks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_runs import BACKBONE, Noting, SaveAfter, fit, listed, make_data, names, written
from lightning import Trainer

from v1lit.data.config import EncodingConfig, MixtureConfig, PackingConfig, SourceConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.loading.dataset import ShardDataset
from v1lit.data.loading.ranks import Ranks
from v1lit.data.loading.val_loader import ValLoader

pytestmark = pytest.mark.dependencies


@pytest.mark.parametrize(
    ("option", "value"),
    [("batch_size", 0), ("val_batch_size", -1), ("num_workers", -1), ("group_by_length", 0)],
)
def test_options_out_of_range_are_refused_by_name(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"data.{option} is {value}"):
        V1DataModule(BACKBONE, **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("shuffle_window", 0), ("lanes", 0), ("max_bad_in_a_row", 0), ("attempts", 0), ("cache_gb", 0.0),
        ("timeout", -1.0), ("max_seconds", 0.0), ("max_bad_fraction", 1.5), ("tail", "cut"),
        ("on_bad", "ignore"),
    ],
)  # fmt: skip
def test_options_of_reading_are_too(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"data.stream.{option} is {value!r}"):
        make_data(tmp_path, tmp_path, stream={option: value})


def test_an_example_must_fit_a_row() -> None:
    with pytest.raises(
        ValueError, match=r"max_tokens is 8192.*length is 4096.*4096 tokens longer.*length=8192"
    ):
        V1DataModule(BACKBONE, packing=PackingConfig(4096))
    V1DataModule(BACKBONE, encoding=EncodingConfig(max_tokens=4096), packing=PackingConfig(4096))


# ------------------------------------------------------------------ finding shards


def test_shards_are_found_in_train_and_val(tmp_path: Path) -> None:
    data = make_data(tmp_path, tmp_path)
    assert not data.has_train
    assert not data.has_val
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="neither it nor its train/ holds shards"):
        data.prepare_data()
    written(tmp_path / "train", 4)
    written(tmp_path / "val", 3)
    data.prepare_data()
    assert data.has_train
    assert data.has_val
    assert data.train_sources == [MixtureConfig(str(tmp_path / "train"))]
    assert [source.shards for source in data.val_sources] == [str(tmp_path / "val")]


def test_validation_may_lie_elsewhere(tmp_path: Path) -> None:
    written(tmp_path / "a" / "train", 4)
    written(tmp_path / "b", 7, first=100)
    source = SourceConfig(folder=str(tmp_path / "a"), val=f"{tmp_path}/b/*.tar")
    data = make_data(tmp_path, tmp_path, source=source)
    assert data.has_val
    assert [batch.ids for batch in data.val_dataloader()] == [
        ("e100", "e101"), ("e102", "e103"), ("e104", "e105"), ("e106",),
    ]  # fmt: skip


@pytest.mark.parametrize(("most", "count"), [(None, 7), (3, 3), (100, 7)])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_validation_examples_come_in_order(
    tmp_path: Path, most: int | None, count: int, workers: int
) -> None:
    written(tmp_path / "val", 7)
    data = make_data(tmp_path, tmp_path, max_val_examples=most, val_batch_size=3, num_workers=workers)
    loader = data.val_dataloader()
    for _ in range(2):
        batches = list(loader)
        assert [id for batch in batches for id in batch.ids] == names(count)
        assert len(batches) == len(loader) == -(-count // 3)


@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_ranks_share_validation_in_equally_many_batches(
    tmp_path: Path, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "val", 7)
    seen = []
    for rank in range(ranks):
        loader = make_data(tmp_path, tmp_path).val_dataloader()
        assert isinstance(loader, ValLoader)
        loader.context.__dict__["ranks"] = Ranks(ranks, rank)  # without a group, they do not talk
        seen.append([batch.ids for batch in loader])
        assert len(seen[-1]) == len(loader)
    assert len({len(batches) for batches in seen}) == 1
    assert sorted(id for batches in seen for ids in batches for id in ids) == names(7)


def test_a_source_that_makes_its_shards_does_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"examples": 6, "val_examples": 2, "image_size": [112, 112], "look": ["shapes"]}
    source = SourceConfig("synthetic", str(tmp_path), options=options)
    data = make_data(tmp_path, tmp_path, source=source)
    data.prepare_data()
    assert len(ShardDataset(tmp_path / "train")) == 6
    monkeypatch.setattr("v1lit.data.datamodule.prepare_source", None)
    data.prepare_data()
    assert len(data.train_dataloader()) == 3


# ------------------------------------------------------------------ runs


def test_a_resumed_run_says_where_it_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, path = written(tmp_path / "s", 12), tmp_path / "x.ckpt"
    fit(make_data(folder, tmp_path), tmp_path, SaveAfter(8, path, stop=True), max_epochs=2)
    assert "resumed" not in caplog.text
    rest = fit(make_data(folder, tmp_path), tmp_path, resume=path, max_epochs=2)
    assert len(rest.batches) == 4
    assert len(re.findall(r"resumed at example 4 of epoch 1 in \d+\.\d\d s", caplog.text)) == 1


def test_without_bad_examples_nothing_is_said_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(make_data(written(tmp_path / "s", 4), tmp_path), tmp_path)
    assert "skipped" not in caplog.text
    assert listed(tmp_path) == []
    assert not (tmp_path / "skipped.jsonl").exists()


def test_a_data_module_serves_several_runs(tmp_path: Path) -> None:
    data = make_data(written(tmp_path / "s", 12), tmp_path)
    assert data.state_dict() == {}
    first = fit(data, tmp_path, max_steps=2, max_epochs=-1)
    again = fit(data, tmp_path)
    assert again.batches[:2] == first.batches
    assert len(again.batches) == 6


def test_the_progress_bar_knows_the_end(tmp_path: Path) -> None:
    data = make_data(written(tmp_path / "s", 13), tmp_path)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=tmp_path, max_epochs=3, accumulate_grad_batches=2,
    )  # fmt: skip
    trainer.fit(Noting(), datamodule=data)
    assert trainer.num_training_batches == 8  # of 13 examples, 2 to a batch, in whole steps of 2 batches
    assert trainer.global_step == 12
