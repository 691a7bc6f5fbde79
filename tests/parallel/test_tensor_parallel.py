"""Language layers divided by tensor parallelism, and the rest over the same ranks, are the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.forked import needs_fork
from helpers.gloo_ranks import gather, on_ranks
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.efficiency import part_layers
from v1lit.parallel.boxes import own_part, tile
from v1lit.parallel.fill import fill_from_model, move_buffers
from v1lit.parallel.gradients import clip_by_norm, total_norm
from v1lit.parallel.sharding import COPIES, SHARDS, TENSOR, Meshes, shard_model
from v1lit.parallel.tensor_parallel import ROWS, layer_plan, refuse_uneven
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.joint_loss import LossShare
from v1lit.pointer.layout import Targets
from v1lit.pointer.model import PointAndCopyModel
from v1lit.testing.models import build, inputs, packed_batch

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "llava", "internvl")
LAYOUTS = {(1, 2, 2): 4, (2, 1, 2): 4, (1, 1, 2): 2}
"""Copies x shards x tensor: their ranks."""
IMAGES = ((1, 2), (0,))
"""Images of the examples that either reader of data has."""
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"first_pointer_weight": 3.0, "label_smoothing": 0.1}, {}),
    "gate, embeddings as keys": ({"gate": True, "key_source": "embedding"}, {}),
    "separate, recomputed": (
        {"loss": "separate", "z_weight": 0.0},
        {"gradient_checkpointing": ["language", "vision"]},
    ),
    "tied, frozen tower": (
        {"tie_heads": True},
        {"freeze": ["vision"], "tiny": {"tie_word_embeddings": True}},
    ),
}
"""Of the pointer, and of the backbone."""


def weight_sum(family: str, images: tuple[int, ...], pointer: PointerConfig) -> Tensor:
    """What the losses of a batch are divided by, to be means."""
    batch = packed_batch(family, images)
    out = build(family, pointer)(**inputs(batch), labels=batch.labels)
    return torch.stack(list(out.terms.counts.values())[: 2 if pointer.loss == "separate" else 1])


def divided(model: PointAndCopyModel, layout: tuple[int, ...], **options: Any) -> PointAndCopyModel:
    """The same model over all ranks."""
    backbone = BackboneConfig(model.config.family, **options)
    empty = PointAndCopyModel.build(backbone, model.pointer_options, empty=True)
    ranks = init_device_mesh("cpu", layout, mesh_dim_names=(COPIES, SHARDS, TENSOR))
    shard_model(empty, Meshes.of(ranks))
    fill_from_model(empty, model, "cpu")
    move_buffers(empty, "cpu")
    return empty


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def step(
    rank: int, family: str, layout: tuple[int, ...], pointer: dict[str, Any], backbone: dict[str, Any]
) -> None:
    """One step of both models: same loss, predictions, gradients, norms, clipped gradients and files."""
    options = PointerConfig(**pointer)
    model = build(family, options, **backbone).train()
    ours = divided(model, layout, **backbone).train()
    for name, parameter in ours.named_parameters():
        assert torch.equal(whole(parameter), model.get_parameter(name)), name
    readers = layout[0] * layout[1]
    sums = [weight_sum(family, IMAGES[reader], options) for reader in range(readers)]
    normalizer = torch.stack(sums).sum(0) / readers
    normalizer = normalizer if options.loss == "separate" else normalizer[0]
    losses = []
    for reader in range(readers):
        batch = packed_batch(family, IMAGES[reader])
        out = model(**inputs(batch), labels=batch.labels, normalizer=normalizer)
        (out.loss / readers).backward()
        losses.append(out)
    reader = rank // layout[2]
    batch = packed_batch(family, IMAGES[reader])
    theirs = losses[reader]
    with torch.no_grad():  # divided by the weights of the batch alone
        alone = [one(**inputs(batch), labels=batch.labels).loss for one in (ours, model)]
    torch.testing.assert_close(*alone, rtol=1e-5, atol=1e-6)
    out = ours(**inputs(batch), labels=batch.labels, normalizer=normalizer)
    out.loss.backward()
    torch.testing.assert_close(out.loss, theirs.loss, rtol=1e-5, atol=1e-6)
    assert torch.equal(out.targets, theirs.targets)
    assert torch.equal(out.terms.predictions, theirs.terms.predictions)
    for name, value in theirs.losses.items():
        torch.testing.assert_close(out.losses[name], value, rtol=1e-5, atol=1e-6)
    compare_gradients(ours, model)
    alike = slice(reader * layout[2], (reader + 1) * layout[2])
    local = {name: p.grad.to_local().tolist() for name, p in ours.named_parameters() if "layernorm" in name}
    assert all(grads == local for grads in gather(local)[alike]), "norms of layers would drift apart"
    norms = [total_norm([p.grad for p in one.parameters() if p.grad is not None]) for one in (ours, model)]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-5, atol=0.0)
    for one in (ours, model):
        clip_by_norm(list(one.parameters()), float(norms[1]) / 3)
    compare_gradients(ours, model)
    each_part_is_written_once(rank, ours)


def compare_gradients(ours: nn.Module, model: nn.Module) -> None:
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    largest = max(value.abs().max().item() for value in expected.values())
    found = {name: whole(p.grad) for name, p in ours.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=1e-6 * largest, msg=lambda text, name=name: f"{name}: {text}"
        )


def each_part_is_written_once(rank: int, model: nn.Module) -> None:
    parts = {name: own_part(name, tensor, rank) for name, tensor in model.named_parameters()}
    everyone = gather({name: part.box for name, part in parts.items() if part.first})
    for name, part in parts.items():
        boxes = [boxes[name] for boxes in everyone if name in boxes]
        assert tile(boxes, part.box.whole(part.shape)), name


def steps(rank: int, family: str, layout: tuple[int, ...], names: list[str]) -> None:
    for name in names:
        try:
            step(rank, family, layout, *OPTIONS[name])
        except AssertionError as error:
            raise AssertionError(f"{family}, {name}: {error}") from error


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_on_2_x_2_ranks_is_that_of_one_process(family: str, tmp_path: Path) -> None:
    on_ranks(4, tmp_path, steps, family, (1, 2, 2), list(OPTIONS)[:: 1 if family == "qwen2_5_vl" else 2])


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("layout", [(1, 1, 2), (2, 1, 2)])
def test_so_it_is_on_1_x_2_ranks_and_on_two_copies_of_2(layout: tuple[int, ...], tmp_path: Path) -> None:
    on_ranks(LAYOUTS[layout], tmp_path, steps, "qwen2_5_vl", layout, list(OPTIONS)[:2])


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
