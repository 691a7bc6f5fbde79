"""Ranks that compute the same batches together, each with its part of the language layers, train as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.curves import Setting, assert_alike_in_twos, step_losses, train_in_twos, train_on
from helpers.forked import needs_fork

from v1lit.data.config import EncodingConfig, PackingConfig
from v1lit.training.strategies import Sharded

pytestmark = [needs_fork, pytest.mark.slow, pytest.mark.dependencies]


@pytest.fixture(scope="module")
def base(scenes: Path) -> Setting:
    return Setting(scenes)


def test_packed_rows_train_as_on_one(base: Setting) -> None:
    encoding = EncodingConfig(max_tokens=256, coordinates=False)
    data = {"packing": PackingConfig(length=256), "encoding": encoding, "batch_size": 2}
    setting = replace(base, data=data, backbone={"gradient_checkpointing": ["language"]})
    assert_alike_in_twos(setting, Sharded(tensor=2), 4, 2)


def test_copies_of_two_train_as_one(base: Setting) -> None:
    assert_alike_in_twos(base, Sharded(shard=2, tensor=2), 4, 2)


def test_ranks_without_an_example_take_part(base: Setting) -> None:
    """24 examples in steps of 16: in the second step of every epoch the second reader has none."""
    assert_alike_in_twos(replace(base, family="llava", examples=16), Sharded(tensor=2), 4, 1)


def test_two_ranks_of_a_node_are_one_reader_by_the_strategys_name(base: Setting) -> None:
    pointer = {"loss": "separate", "z_weight": 0.0}
    setting = replace(base, family="internvl", pointer=pointer, module={"verify_loss": 1})
    assert_alike_in_twos(setting, "fsdp2_tp", 2, 4)


def test_validation_is_that_of_one_rank(base: Setting) -> None:
    setting = replace(base, steps=3, trainer={"limit_val_batches": 1.0}, data={"val_batch_size": 4})
    one = train_on(setting, "auto", 1, accumulate=4)[0]
    ranks = train_in_twos(setting, Sharded(tensor=2), 4, 2)
    assert one.val
    for curve in ranks:
        assert curve.val == pytest.approx(one.val, rel=1e-5, abs=1e-6)


def test_muon_trains_as_far_as_its_own_bfloat16_allows(base: Setting) -> None:
    setting = replace(base, optimizer={"name": "muon"})
    one, four = train_on(setting, "auto", 1, accumulate=4), train_in_twos(setting, Sharded(tensor=2), 4, 2)
    assert step_losses(four, 2, 4) == pytest.approx(step_losses(one, 4, 4), rel=2e-4)


def test_mixed_precision_is_near_that_of_one_rank(base: Setting) -> None:
    setting = replace(base, precision="bf16-mixed")
    one, two = train_on(setting, "auto", 1, accumulate=4), train_in_twos(setting, Sharded(tensor=2), 2, 4)
    assert step_losses(two, 4, 4) == pytest.approx(step_losses(one, 4, 4), rel=5e-3)


def test_heads_that_do_not_divide_are_refused_by_the_option(base: Setting) -> None:
    reason = r"init_args\.tensor is 4; num_key_value_heads=2 .* 4 ranks"
    with pytest.raises(AssertionError, match=reason):
        train_on(base, Sharded(tensor=4), 4)
