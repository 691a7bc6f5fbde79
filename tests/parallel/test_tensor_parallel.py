"""Language layers divided by tensor parallelism, and the rest over the same ranks, are the whole model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.forked import needs_fork
from helpers.gloo_ranks import on_ranks
from helpers.one_step import FAMILIES, OPTIONS, divided, layout_of, steps
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor.debug import CommDebugMode

from v1lit.backbones.efficiency import part_layers
from v1lit.parallel.sharding import TENSOR
from v1lit.parallel.tensor_parallel import ROWS, layer_plan, refuse_uneven
from v1lit.pointer.joint_loss import LossShare
from v1lit.pointer.layout import Targets
from v1lit.testing.models import build, inputs, packed_batch

LAYOUTS = {(1, 2, 2): 4, (2, 1, 2): 4, (1, 1, 2): 2}
"""Copies x shards x tensor: their ranks."""


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_on_ranks_is_that_of_one_process(family: str, tmp_path: Path) -> None:
    layout, options = layout_of(family), list(OPTIONS)[:: 1 if family == "qwen2_5_vl" else 2]
    on_ranks(math.prod(layout), tmp_path, steps, family, layout, TENSOR, options)


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("layout", [(1, 1, 2), (2, 1, 2)])
def test_so_it_is_on_1_x_2_ranks_and_on_two_copies_of_2(layout: tuple[int, ...], tmp_path: Path) -> None:
    on_ranks(LAYOUTS[layout], tmp_path, steps, "qwen2_5_vl", layout, TENSOR, list(OPTIONS)[:2])


def count_sums(rank: int) -> tuple[int, int, int]:
    """Sums over the ranks of one layer's matrices: in a forward pass, in its backward pass; its layers."""
    model = divided(build("qwen2_5_vl").train(), (1, 1, 2)).train()
    batch = packed_batch("qwen2_5_vl", (1,))
    with CommDebugMode() as forward:
        loss = model(**inputs(batch), labels=batch.labels).loss
    with CommDebugMode() as backward:
        loss.backward()
    sums = [mode.get_comm_counts()[torch.ops.c10d_functional.all_reduce] for mode in (forward, backward)]
    return sums[0], sums[1], len(part_layers(model.backbone, model.family, "language"))


@needs_fork
def test_attention_and_mlp_add_up_once_in_either_pass(tmp_path: Path) -> None:
    for forward, backward, layers in on_ranks(2, tmp_path, count_sums):
        assert forward == backward == 2 * layers


# ------------------------------------------------------------------ what can be divided


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_a_language_layer_is_divided(family: str) -> None:
    model = build(family)
    config = model.config.get_text_config()
    layer = part_layers(model.backbone, model.family, "language")[0]
    plan = layer_plan(layer, "layers.0", config)
    matrices = {name for name, p in layer.named_parameters() if p.ndim > 1}
    assert {f"{name}.weight" for name in plan} == matrices
    assert [name for name, way in plan.items() if way == ROWS] == ["self_attn.o_proj", "mlp.down_proj"]


def test_a_family_of_which_transformers_states_no_plan_is_refused_by_the_matrix() -> None:
    model = build("qwen2_5_vl")
    config = model.config.get_text_config()
    layer = part_layers(model.backbone, model.family, "language")[0]
    config.base_model_tp_plan = {**config.base_model_tp_plan, "layers.*.mlp.up_proj": "packed_colwise"}
    with pytest.raises(ValueError, match=r"mlp\.up_proj of qwen2_5_vl_text may be divided"):
        layer_plan(layer, "layers.0", config)
    model = build("qwen3_5")
    layer = part_layers(model.backbone, model.family, "language")[0]
    with pytest.raises(ValueError, match=r"linear_attn\.in_proj_qkv.* of qwen3_5_text may be divided"):
        layer_plan(layer, "layers.0", model.config.get_text_config())


@pytest.mark.parametrize(("ranks", "name"), [(4, "num_key_value_heads=2"), (8, "num_attention_heads=4")])
def test_heads_that_do_not_divide_are_refused_by_name(ranks: int, name: str) -> None:
    config = build("qwen2_5_vl").config.get_text_config()
    refuse_uneven(config, 2)
    with pytest.raises(ValueError, match=f"{name} .*{ranks} ranks"):
        refuse_uneven(config, ranks)


# ------------------------------------------------------------------ the share of a loss


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 4))
def test_the_shares_of_a_loss_are_all_of_its_positions_in_order(counts: list[int], size: int) -> None:
    total = sum(counts)
    tokens = torch.arange(total) + 7
    targets = Targets(tokens, tokens + 1, tokens % 2 == 0, tuple(counts))
    owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    group: Any = None
    parts = [targets.part(LossShare(group, own, size).part(total)) for own in range(size)]
    assert torch.equal(torch.cat([part.tokens for part in parts]), tokens)
    assert torch.equal(torch.cat([part.labels for part in parts]), targets.labels)
    assert torch.equal(torch.cat([part.first for part in parts]), targets.first)
    for own, part in enumerate(parts):
        some = owners[LossShare(group, own, size).part(total)]
        assert part.positions == tuple(torch.bincount(some, minlength=len(counts)).tolist())
