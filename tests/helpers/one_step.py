"""One training step of a model over several ranks, compared with that of one process in everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from helpers.gloo_ranks import gather
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.efficiency import part_layers
from v1lit.backbones.registry import BUILTIN
from v1lit.parallel.boxes import own_part, tile
from v1lit.parallel.fill import fill_from_model, move_buffers
from v1lit.parallel.gradients import clip_by_norm, total_norm
from v1lit.parallel.sharding import CONTEXT, COPIES, SHARDS, TENSOR, Meshes, shard_model
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.testing.models import build, inputs, packed_batch

FAMILIES = tuple(name for name in BUILTIN if name != "qwen3_5")
"""Whose decoders ranks can share: those of linear attention carry a state from token to token."""
SHARDED_TOO = ("qwen2_5_vl", "gemma3")
"""Families whose step is cut into shards too while ranks share it: with plain attention, and with windows."""
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
on_two_ranks = pytest.mark.parametrize(
    ("layout", "inner"),
    [((1, 2, 1), TENSOR), ((1, 1, 2), TENSOR), ((1, 1, 2), CONTEXT)],
    ids=["sharded", "tensor", "context"],
)
"""Ways in which two ranks share a step: its weights, its layers, its positions."""


def layout_of(family: str) -> tuple[int, int, int]:
    """Copies, shards and ranks that share a step of a family."""
    return (1, 2 if family in SHARDED_TOO else 1, 2)


def weight_sum(family: str, images: tuple[int, ...], pointer: PointerConfig) -> Tensor:
    """What the losses of a batch are divided by, to be means."""
    batch = packed_batch(family, images)
    out = build(family, pointer)(**inputs(batch), labels=batch.labels)
    return torch.stack(list(out.terms.counts.values())[: 2 if pointer.loss == "separate" else 1])


def divided(
    model: PointAndCopyModel, layout: tuple[int, ...], inner: str = TENSOR, **options: Any
) -> PointAndCopyModel:
    """The same model over all ranks, copies x shards x `inner`."""
    backbone = BackboneConfig(model.config.family, **options)
    empty = PointAndCopyModel.build(backbone, model.pointer_options, model.config.revisit_options, empty=True)
    ranks = init_device_mesh("cpu", layout, mesh_dim_names=(COPIES, SHARDS, inner))
    shard_model(empty, Meshes.of(ranks))
    fill_from_model(empty, model, "cpu")
    move_buffers(empty, "cpu")
    return empty


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def step(
    rank: int,
    family: str,
    layout: tuple[int, ...],
    inner: str,
    pointer: dict[str, Any],
    backbone: dict[str, Any],
) -> None:
    """One step of both models: same loss, predictions, gradients, norms, clipped gradients and files."""
    options = PointerConfig(**pointer)
    model = build(family, options, **backbone).train()
    ours = divided(model, layout, inner, **backbone).train()
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
    if inner == TENSOR:
        norms_stay_alike(ours, slice(reader * layout[2], (reader + 1) * layout[2]))
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


def norms_stay_alike(ours: PointAndCopyModel, alike: slice) -> None:
    """Those of the language layers, of ranks that each have the same part of them."""
    layers = nn.ModuleList(part_layers(ours.backbone, ours.family, "language"))
    local = {name: p.grad.to_local().tolist() for name, p in layers.named_parameters() if "norm" in name}
    assert all(grads == local for grads in gather(local)[alike]), "norms of layers would drift apart"


def each_part_is_written_once(rank: int, model: nn.Module) -> None:
    parts = {name: own_part(name, tensor, rank) for name, tensor in model.named_parameters()}
    everyone = gather({name: part.box for name, part in parts.items() if part.first})
    for name, part in parts.items():
        boxes = [boxes[name] for boxes in everyone if name in boxes]
        assert tile(boxes, part.box.whole(part.shape)), name


def steps(rank: int, family: str, layout: tuple[int, ...], inner: str, names: list[str]) -> None:
    """One step with each of these `OPTIONS`, on this rank of copies x shards x `inner`."""
    for name in names:
        try:
            step(rank, family, layout, inner, *OPTIONS[name])
        except AssertionError as error:
            raise AssertionError(f"{family}, {name}: {error}") from error
