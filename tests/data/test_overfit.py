"""`trainer.overfit_batches`: the same few batches in every epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_runs import SaveAfter, fit, make_data, written

from v1lit.data.config import PackingConfig


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    written(tmp_path / "train", 12)
    written(tmp_path / "val", 6, first=100)
    return tmp_path


@pytest.mark.parametrize(("overfit", "batches"), [(2, 2), (0.5, 3), (100, 6), (1.0, 6)])
def test_every_epoch_has_the_batches_of_the_first_one(
    shards: Path, overfit: int | float, batches: int
) -> None:
    seen = fit(make_data(shards, shards), shards, max_epochs=3, overfit_batches=overfit).batches
    first = seen[:batches]
    assert seen == 3 * first
    assert len(set(first)) == batches


def test_and_validates_on_the_first_batches_of_the_validation_set(shards: Path) -> None:
    seen = fit(make_data(shards, shards), shards, max_epochs=2, overfit_batches=1).val_batches
    assert seen == 2 * [("e100", "e101")]


def test_without_it_every_epoch_has_others(shards: Path) -> None:
    seen = fit(make_data(shards, shards), shards, max_epochs=2, limit_train_batches=2).batches
    assert seen[:2] != seen[2:]


@pytest.mark.parametrize("options", [{"num_workers": 1}, {"packing": 260}, {"accumulate_grad_batches": 2}])
def test_workers_packing_and_accumulation_change_nothing_of_it(shards: Path, options: dict[str, Any]) -> None:
    accumulate = options.pop("accumulate_grad_batches", 1)
    packing = PackingConfig(options.pop("packing", None))
    data = make_data(shards, shards, packing=packing, **options)
    seen = fit(data, shards, max_epochs=2, overfit_batches=2, accumulate_grad_batches=accumulate).batches
    assert seen == 2 * seen[:2]


def test_a_resumed_run_goes_on_with_the_same_ones(shards: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 4, "overfit_batches": 2}
    whole = fit(make_data(shards, shards), shards, **options).batches
    saved = shards / "saved.ckpt"
    begun = fit(make_data(shards, shards), shards, SaveAfter(5, saved, stop=True), **options).batches
    rest = fit(make_data(shards, shards), shards, resume=saved, **options).batches
    assert begun[:5] + rest == whole
