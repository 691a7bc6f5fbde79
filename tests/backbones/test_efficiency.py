"""Recomputed and compiled layers: exactly those asked for, and the same results."""

from __future__ import annotations

import gc
import importlib
import logging
import shutil
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer

from v1lit.backbones import list_backbones
from v1lit.backbones.attention import packed_decoder_arguments, use_segments
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.efficiency import (
    check_compiler,
    compile_layers,
    compiler_name,
    enable_checkpointing,
    part_layers,
)
from v1lit.backbones.load import freeze, load_backbone
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.segments import Segments

pytestmark = pytest.mark.dependencies

LANGUAGE_BATCHES = ((10, 20, 30), (17, 9), (40,), (5, 6, 7, 8, 9, 1))
VISION_BATCHES = (((4, 6), (8, 12)), ((16, 10),), ((4, 4), (4, 4), (20, 20)))

needs_compiler = pytest.mark.skipif(
    shutil.which(compiler_name()) is None, reason=f"no C++ compiler ({compiler_name()})"
)


def tiny(name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = load_backbone(BackboneConfig(name)).train()
    use_segments(model.config.get_text_config())
    return model, get_backbone(name)


def text(model: Any, lengths: tuple[int, ...]) -> Tensor:
    """Hidden states of a packed row of random embeddings."""
    return model.get_decoder()(**decoder_inputs(model, lengths)).last_hidden_state


def decoder_inputs(model: Any, lengths: tuple[int, ...]) -> dict[str, Any]:
    torch.manual_seed(sum(lengths))
    embeddings = torch.randn(1, sum(lengths), model.config.get_text_config().hidden_size)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    arguments = packed_decoder_arguments(Segments(lengths), embeddings.device, embeddings.dtype)
    return {"inputs_embeds": embeddings, "position_ids": positions, **arguments}


def images(model: Any, backbone: Any, grids: tuple[tuple[int, int], ...]) -> Tensor:
    """Features of as many images as there are grids; of these sizes where the family has several."""
    torch.manual_seed(len(grids))
    if "image_grid_thw" in backbone.image_inputs:
        thw = torch.tensor([[1, *grid] for grid in grids])
        vision = model.config.vision_config
        values = 3 * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(int(thw.prod(1).sum()), values)
        return backbone.encode_images(model, pixel_values=pixels, image_grid_thw=thw)
    blank = backbone.blank_image(model)
    several = {name: value.repeat(len(grids), *[1] * (value.ndim - 1)) for name, value in blank.items()}
    several["pixel_values"] = torch.randn_like(several["pixel_values"])
    return backbone.encode_images(model, **several)


def results(model: Any, run: Callable[[], Tensor]) -> list[Tensor]:
    """The output, and the gradients of its mean square."""
    model.zero_grad()
    output = run()
    if output.requires_grad:
        output.square().mean().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [output.detach(), *gradients]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, float(other.abs().max())))


def count_calls(layers: list[Any]) -> list[int]:
    """How often each layer's first product is computed from now on; a second pass may end before the last."""
    counts = [0] * len(layers)
    for number, layer in enumerate(layers):

        def count(*_: Any, number: int = number) -> None:
            counts[number] += 1

        linear = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
        linear[0].register_forward_hook(count)
    return counts


@pytest.mark.parametrize("part", ["language", "vision"])
@pytest.mark.parametrize("name", list_backbones())
def test_exactly_the_layers_of_the_part_are_computed_again_and_nothing_changes(name: str, part: str) -> None:
    model, backbone = tiny(name)

    def both() -> Tensor:
        features = images(model, backbone, ((4, 6), (8, 12)))
        return torch.cat([features.flatten(), text(model, (10, 20)).flatten()])

    before = results(model, both)
    layers = {one: part_layers(model, backbone, one) for one in ("language", "vision")}
    assert enable_checkpointing(model, backbone, [part]) == len(layers[part])
    counts = {one: count_calls(found) for one, found in layers.items()}
    assert_same(results(model, both), before)
    for one, counted in counts.items():
        assert set(counted) == ({2} if one == part else {1})


@pytest.mark.parametrize("name", list_backbones())
def test_a_frozen_tower_is_not_computed_again(name: str) -> None:
    model, backbone = tiny(name)
    freeze(model, backbone, ["vision"])
    enable_checkpointing(model, backbone, ["language", "vision"])
    counts = count_calls(part_layers(model, backbone, "vision"))
    results(model, lambda: images(model, backbone, ((4, 6),)))
    assert set(counts) == {1}


def test_nothing_is_computed_again_outside_of_training() -> None:
    model, backbone = tiny("qwen2_5_vl")
    enable_checkpointing(model, backbone, ["language"])
    model.eval()
    counts = count_calls(part_layers(model, backbone, "language"))
    results(model, lambda: text(model, (10, 20)))
    assert set(counts) == {1}


def trace_only() -> Callable[..., Any]:
    """In place of `torch.compile`: graphs and guards as ever, but nothing is translated to C++."""
    return partial(torch.compile, backend="eager")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@needs_compiler
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("part", "recomputed"), [("language", True), ("vision", False)], ids=["language, recomputed", "vision"]
)
def test_compiled_layers_give_the_same_and_one_compilation_serves_all_batches(
    part: str, recomputed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part == "vision":
        monkeypatch.setattr(torch, "compile", trace_only())
    model, backbone = tiny("qwen2_5_vl")
    names = list(model.state_dict())
    if part == "language":
        runs = [lambda lengths=lengths: text(model, lengths) for lengths in LANGUAGE_BATCHES]
    else:
        runs = [lambda grids=grids: images(model, backbone, grids) for grids in VISION_BATCHES]
    eager = [results(model, run) for run in runs]
    if recomputed:
        enable_checkpointing(model, backbone, [part])
    layers = part_layers(model, backbone, part)
    assert compile_layers(model, backbone, [part]) == len(layers)
    graphs = []
    for run, expected in zip(runs, eager, strict=True):
        assert_same(results(model, run), expected)
        graphs.append(counters["stats"]["unique_graphs"])
    assert list(model.state_dict()) == names
    # The pieces of one layer around its attention, compiled once. A row of one segment may need its own.
    assert 0 < graphs[0] <= 8
    assert graphs[-1] <= graphs[0] + 2


class OlderLayer(nn.Module):
    """The base class of layers as in transformers 5.17: it hands over a call that is bound to the layer."""

    gradient_checkpointing = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(partial(super().__call__, **kwargs), *args)
        return super().__call__(*args, **kwargs)


def stack(base: type[nn.Module], layers: int) -> Any:
    """A model that is nothing but a few layers of a new class."""

    class Layer(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
            return x + factor * self.linear(x).tanh()

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer() for _ in range(layers))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, factor=0.5)
            return x

    torch.manual_seed(0)
    return Stack().train()


@pytest.mark.slow
@needs_compiler
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("recomputed", [False, True], ids=["", "recomputed"])
@pytest.mark.parametrize("base", [GradientCheckpointingLayer, OlderLayer])
def test_one_compiled_function_serves_a_class_of_layers_and_keeps_no_model(
    base: type[nn.Module], recomputed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.modeling_layers.GradientCheckpointingLayer", base)
    compiled: list[Any] = []
    stock = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled.append(f) or stock(f, **options))
    model = stack(base, 4)
    backbone: Any = SimpleNamespace(name="stack", layers=lambda model, part: list(model.layers))
    run = partial(model, torch.randn(5, 8))
    expected = results(model, run)
    if recomputed:
        enable_checkpointing(model, backbone, ["language"])
    assert compile_layers(model, backbone, ["language"]) == 4
    assert_same(results(model, run), expected)
    assert len(compiled) == 1
    assert counters["stats"]["unique_graphs"] > 0
    gone = weakref.ref(model.layers[0])
    del model, run
    gc.collect()
    assert gone() is None


def step_on_two_ranks(rank: int, rendezvous: str, results: str) -> None:
    """One step of a compiled decoder; its buckets are so small that a layer's graph would be split."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.compile = trace_only()  # type: ignore[assignment]
    ddp = importlib.import_module("torch._dynamo.backends.distributed")
    ddp.DDPOptimizer = None  # type: ignore[attr-defined]
    model, backbone = tiny("qwen2_5_vl")
    model.get_input_embeddings().requires_grad_(False)  # not used here
    compile_layers(model, backbone, ["language"])
    decoder = DistributedDataParallel(model.get_decoder(), bucket_cap_mb=1e-3)
    row = decoder_inputs(model, LANGUAGE_BATCHES[rank])
    decoder(**row).last_hidden_state.square().mean().backward()
    assert counters["stats"]["unique_graphs"] > 0
    gradients = {n: p.grad for n, p in decoder.module.named_parameters() if p.grad is not None}
    save_file(gradients, f"{results}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
@needs_compiler
@pytest.mark.timeout(180)
@pytest.mark.usefixtures("fresh_compiler")
def test_under_ddp_compiled_layers_stay_whole_and_take_the_same_step(tmp_path: Path) -> None:
    arguments = (str(tmp_path / "rendezvous"), str(tmp_path))
    mp.start_processes(step_on_two_ranks, args=arguments, nprocs=2, start_method="fork")
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    model, _ = tiny("qwen2_5_vl")
    for lengths in LANGUAGE_BATCHES[:2]:
        (text(model, lengths).square().mean() / 2).backward()
    expected = {n: p.grad for n, p in model.get_decoder().named_parameters() if p.grad is not None}
    assert ranks[0].keys() == ranks[1].keys() == expected.keys()
    names = list(expected)
    assert_same([ranks[0][name] for name in names], [ranks[1][name] for name in names])
    assert_same([ranks[0][name] for name in names], [expected[name] for name in names])


@needs_compiler
@pytest.mark.usefixtures("fresh_compiler")
def test_outside_of_training_nothing_is_compiled() -> None:
    model, backbone = tiny("llava")
    compile_layers(model, backbone, ["language", "vision"])
    model.eval()
    with torch.no_grad():
        text(model, (4, 5))
        images(model, backbone, ((4, 4),))
    assert not counters["stats"]


def test_without_a_compiler_the_message_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    model, backbone = tiny("qwen2_5_vl")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ValueError, match=r"model\.backbone\.compile needs a C\+\+ compiler, and no-such-compiler"
    ):
        compile_layers(model, backbone, ["language"])
    compile_layers(model, backbone, [])
    monkeypatch.setenv("CXX", "python3")
    check_compiler()


@pytest.mark.parametrize("field", ["gradient_checkpointing", "compile"])
def test_a_part_without_layers_is_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is .*no 'projector'; allowed: language, vision"):
        BackboneConfig("llava", **{field: ["projector"]})
    assert BackboneConfig("llava", **{field: ["vision", "language"]})
    model, backbone = tiny("llava")
    with pytest.raises(ValueError, match="unknown part with layers 'projector'"):
        part_layers(model, backbone, "projector")
