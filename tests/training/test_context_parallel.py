"""Ranks that share the tokens of packed rows train as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.curves import Setting, assert_alike_in_twos, train_on
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
    backbone = {"gradient_checkpointing": ["language", "vision"]}
    setting = replace(base, data=data, backbone=backbone, pointer={"gate": True})
    assert_alike_in_twos(setting, Sharded(context=2), 4, 2)


def test_two_ranks_of_a_node_are_one_reader(base: Setting) -> None:
    pointer = {"loss": "separate", "z_weight": 0.0, "key_source": "embedding"}
    setting = replace(base, family="internvl", pointer=pointer, module={"verify_loss": 1})
    assert_alike_in_twos(setting, Sharded(context="node"), 2, 4)


def test_ranks_without_an_example_take_part(base: Setting) -> None:
    """24 examples in steps of 16: in the second step of every epoch the second reader has none."""
    assert_alike_in_twos(replace(base, family="llava", examples=16), Sharded(context=2), 4, 1)


def test_copies_of_two_train_as_one(base: Setting) -> None:
    tied = {"tiny": {"tie_word_embeddings": True}}
    setting = replace(base, family="qwen2_vl", backbone=tied, pointer={"tie_heads": True})
    assert_alike_in_twos(setting, Sharded(shard=2, context=2), 4, 2)


def test_heads_that_do_not_divide_are_refused_by_the_option(base: Setting) -> None:
    backbone = {"tiny": {"heads": 3, "kv_heads": 3, "hidden_size": 48}}
    with pytest.raises(AssertionError, match=r"init_args\.context is 2; num_attention_heads=3 .* 2 ranks"):
        train_on(replace(base, backbone=backbone), Sharded(context=2), 2)


def test_ranks_share_matrices_or_tokens_but_not_both(base: Setting) -> None:
    with pytest.raises(AssertionError, match=r"init_args\.context is 2; .* not both, and tensor is node"):
        train_on(base, Sharded(tensor="node", context=2), 2)


def test_ranks_that_do_not_divide_are_refused_by_the_option(base: Setting) -> None:
    with pytest.raises(AssertionError, match=r"init_args\.context is 3; the 2 ranks of a node"):
        train_on(base, Sharded(context=3), 2)
