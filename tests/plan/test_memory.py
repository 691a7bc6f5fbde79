"""The arithmetic of strategies over the moments of a step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, distributed

from v1lit.backbones.adapters.config import AdapterConfig
from v1lit.backbones.adapters.quantized import BYTES
from v1lit.backbones.config import BackboneConfig
from v1lit.errors import OptionError
from v1lit.plan import timeline
from v1lit.plan.architecture import published_sizes
from v1lit.plan.planner import Planner
from v1lit.plan.setting import Setting, strategy_of
from v1lit.plan.speed import Cluster, Layers, sent_by, speed_of
from v1lit.plan.units import Size
from v1lit.pointer.config import PointerConfig
from v1lit.revisit.config import RevisitConfig
from v1lit.training.config import OptimizerConfig

TINY = Setting(
    backbone=BackboneConfig(name="llava", weights="tiny", tiny={"hidden_size": 256, "layers": 4}),
    pointer=PointerConfig(),
    revisit=RevisitConfig(),
    optimizer=OptimizerConfig(),
    strategy="ddp",
    precision="bf16-mixed",
    accumulate=2,
    nodes=1,
    gpus=8,
    examples=4,
    tokens=100,
    image=(84, 84),
)

LAYERS = Layers(number=2, hidden=64, heads=8, key_heads=2, head_size=8)
PLANNER = Planner()
"""Keeps steps on paper from test to test."""


def weights(setting: Setting) -> int:
    return sum(size.all for size in PLANNER.sizes(setting).values())


def test_every_gpu_holds_a_share_of_what_is_divided_and_all_of_what_is_not() -> None:
    whole = PLANNER.memory(TINY)
    divided = PLANNER.memory(replace(TINY, strategy="fsdp2"))
    copied = PLANNER.memory(replace(TINY, strategy="hsdp", nodes=4))
    assert whole.weights == 4 * weights(TINY)
    assert 7.9 * weights(TINY) < whole.moments < 8 * weights(TINY)  # an unused layer does not learn
    assert divided.weights == copied.weights == whole.weights / 8
    assert divided.moments == whole.moments / 8


def test_gradients_that_wait_for_the_last_micro_batch_are_whole() -> None:
    waiting = PLANNER.memory(replace(TINY, strategy="fsdp2"))
    reduced = PLANNER.memory(replace(TINY, strategy="fsdp2", reduce_every=True))
    assert waiting.gradients >= 3.9 * weights(TINY) > 3 * reduced.gradients


def test_an_average_is_a_third_moment_and_what_a_pattern_freezes_has_none() -> None:
    plain, average = (
        PLANNER.memory(replace(TINY, optimizer=OptimizerConfig(ema_decay=decay))) for decay in (None, 0.9)
    )
    assert average.moments == 1.5 * plain.moments
    part, pattern = (
        PLANNER.memory(replace(TINY, backbone=replace(TINY.backbone, freeze=parts), freeze=patterns))
        for parts, patterns in ((["vision"], ()), ([], ("backbone.model.vision_tower.*",)))
    )
    assert pattern == part != plain


def test_a_frozen_part_has_neither_gradients_nor_moments() -> None:
    frozen = replace(TINY, backbone=replace(TINY.backbone, freeze=["language", "vision"]))
    memory = PLANNER.memory(frozen)
    assert memory.weights == 4 * weights(TINY)
    assert memory.moments < weights(TINY)


def test_beside_adapters_weights_have_their_own_type_and_neither_gradients_nor_moments() -> None:
    half = replace(TINY, backbone=replace(TINY.backbone, dtype="bfloat16"))
    lora = replace(half, adapter=AdapterConfig("lora", rank=4))
    sizes = PLANNER.sizes(lora).values()
    every, learned = sum(size.all for size in sizes), sum(size.learned for size in sizes)
    memory = PLANNER.memory(lora)
    assert memory.weights == 2 * (every - learned) + 4 * learned
    assert (memory.moments, memory.gradients) == (8 * learned, pytest.approx(4 * learned, rel=0.2))
    assert PLANNER.memory(replace(lora, strategy="fsdp2")).weights == memory.weights / 8
    packed = replace(lora, adapter=replace(lora.adapter, kind="qlora"))
    saved = sum(size.packed for size in PLANNER.sizes(packed).values()) * (2 - BYTES)
    assert saved > 0.4 * memory.weights
    largest = PLANNER.memory(packed).weights - (memory.weights - saved)
    assert 0 < largest < 0.1 * memory.weights  # the one that is unpacked
    with pytest.raises(OptionError, match="weights in 4 bits are not divided over GPUs"):
        replace(packed, strategy="fsdp2")


def test_the_largest_micro_batch_is_the_last_that_fits() -> None:
    limit = 0.5e9
    largest = PLANNER.largest(TINY, limit)
    assert largest is not None
    examples, memory = largest
    assert memory.total <= limit
    for more, fits in ((examples - 1, True), (examples + 2, False)):
        assert (PLANNER.memory(replace(TINY, examples=more)).total <= limit) is fits
    assert PLANNER.largest(TINY, 1e6) is None


def test_changes_come_one_after_another_until_it_fits() -> None:
    needed = PLANNER.memory(TINY).total
    changes = list(PLANNER.changes(TINY, needed / 4))
    assert changes[0].what.startswith("--model.backbone.gradient_checkpointing")
    assert any("fsdp2" in change.what for change in changes)
    assert changes[-1].memory.total <= needed / 4 < changes[-2].memory.total


def test_a_sum_sends_twice_and_a_division_sends_weights_as_well() -> None:
    size = Size(1000, 800)
    two_nodes = replace(TINY, nodes=2)
    assert sent_by(two_nodes, size, LAYERS).inside == 2 * 800 * 4 * 15 / 16
    assert sent_by(two_nodes, size, LAYERS).between == 2 * 800 * 4 / 2 / 8
    divided = replace(two_nodes, strategy="fsdp2")
    every = (2 * 1000 * 2 * 2 + 800 * 4) * 15 / 16
    assert sent_by(divided, size, LAYERS).inside == every
    assert sent_by(replace(divided, reduce_every=True), size, LAYERS).inside == every + 800 * 4 * 15 / 16
    copied = sent_by(replace(two_nodes, strategy="hsdp"), size, LAYERS)
    assert copied.between == 2 * 800 * 4 / 8 / 2


def test_a_step_takes_the_longer_of_computing_and_sending() -> None:
    model, shape, size = PLANNER.model(TINY), PLANNER.shape(TINY), Size(10**6, 10**6)
    fast = Cluster(peak=1e12, mfu=0.5, inside=1e18, between=1e18)
    slow = replace(fast, inside=1.0)
    one, other = (speed_of(TINY, model, shape, size, cluster) for cluster in (fast, slow))
    assert one.seconds == one.computing == one.flops / 0.5e12
    assert other.seconds == other.sending > other.computing
    assert one.tokens_per_second == 8 * 2 * 400 / one.seconds


SHARDED = "v1lit.training.strategies.Sharded"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("auto", {"strategy": "ddp"}),
        ("ddp_spawn", {"strategy": "ddp"}),
        ("hsdp", {"strategy": "hsdp", "shard": None, "tensor": 1, "context": 1, "reduce_every": False}),
        (
            {"class_path": SHARDED, "init_args": {"shard": 4, "reduce_every_micro_batch": True}},
            {"strategy": "fsdp2", "shard": 4, "tensor": 1, "context": 1, "reduce_every": True},
        ),
        (
            {"class_path": SHARDED, "init_args": {"tensor": "node"}},
            {"strategy": "fsdp2", "shard": None, "tensor": 8, "context": 1, "reduce_every": False},
        ),
        (
            {"class_path": SHARDED, "init_args": {"shard": "node", "context": 4}},
            {"strategy": "hsdp", "shard": None, "tensor": 1, "context": 4, "reduce_every": False},
        ),
    ],
)
def test_a_strategy_is_read_from_the_trainers_part(given: object, expected: object) -> None:
    assert strategy_of({"strategy": given}, 1, 8) == expected


def test_with_tensor_parallelism_a_gpu_gathers_and_computes_a_part_of_the_language_layers() -> None:
    alone = replace(TINY, strategy="fsdp2", nodes=2)
    together = replace(alone, tensor=4)
    whole, part = (PLANNER.memory(setting) for setting in (alone, together))
    assert part.weights == pytest.approx(whole.weights, rel=0.01)  # norms are not divided further
    assert part.gradients < whole.gradients
    assert part.gathered < whole.gathered
    assert part.activations < whole.activations
    assert together.examples_per_step == alone.examples_per_step / 4
    model, shape, size = PLANNER.model(alone), PLANNER.shape(alone), PLANNER.size(alone)
    cluster = Cluster(peak=1e12, mfu=0.5, inside=1e9, between=1e9)
    one, four = (speed_of(setting, model, shape, size, cluster) for setting in (alone, together))
    assert one.flops / 4 < four.flops < one.flops
    assert four.sent.inside > one.sent.inside


def test_with_context_parallelism_a_gpu_has_a_part_of_the_tokens_and_its_share_of_all_weights() -> None:
    alone = replace(TINY, strategy="fsdp2", nodes=2, tokens=800)
    together = replace(alone, context=4)
    whole, part = (PLANNER.memory(setting) for setting in (alone, together))
    assert (part.weights, part.moments) == (whole.weights, whole.moments)
    assert PLANNER.activations(alone) / 4 < PLANNER.activations(together) < PLANNER.activations(alone) / 2
    assert together.examples_per_step == alone.examples_per_step / 4
    model, shape, size = PLANNER.model(alone), PLANNER.shape(alone), PLANNER.size(alone)
    cluster = Cluster(peak=1e12, mfu=0.5, inside=1e9, between=1e9)
    one, four = (speed_of(setting, model, shape, size, cluster) for setting in (alone, together))
    assert one.flops / 4 < four.flops < one.flops
    assert four.sent.between == one.sent.between


@pytest.mark.parametrize("recomputed", [[], ["language"]])
def test_what_gpus_exchange_for_a_row_is_what_a_step_on_paper_exchanges(
    recomputed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanged: list[int] = []

    def note(received: Tensor, *args: Any, **options: Any) -> None:
        exchanged.append(received.numel() * received.element_size() * 3 // 4)

    monkeypatch.setattr(timeline, "without_exchange", nullcontext)
    monkeypatch.setattr(distributed, "all_to_all_single", note)
    monkeypatch.setattr(distributed, "all_gather_into_tensor", note)
    backbone = replace(TINY.backbone, gradient_checkpointing=recomputed)  # its four layers all compute
    setting = replace(TINY, strategy="fsdp2", accumulate=1, backbone=backbone)
    together = replace(setting, context=4)
    Planner().memory(together)
    layers, size = Layers.of(PLANNER.model(setting).config.get_text_config()), Size(0, 0)
    gradient_of_states = 2 * 4 * 100 * layers.hidden * 2 * 3 / 4  # what the loss sums
    assert sent_by(setting, size, layers).inside == 0
    assert sent_by(together, size, layers).inside == sum(exchanged) + gradient_of_states


def test_what_cannot_be_planned_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"trainer.strategy is 'deepspeed'; allowed: auto, ddp, fsdp2"):
        strategy_of({"strategy": "deepspeed"}, 1, 8)
    with pytest.raises(OptionError, match="context is 4; GPUs share matrices or tokens, not both"):
        replace(TINY, strategy="fsdp2", tensor=2, context=4)
    with pytest.raises(OptionError, match="context is 3; the 8 GPUs of a node"):
        replace(TINY, strategy="fsdp2", context=3)
    with pytest.raises(OptionError, match="context is 8; num_attention_heads=4 of the language model"):
        PLANNER.memory(replace(TINY, strategy="fsdp2", context=8))
    with pytest.raises(OptionError, match="8 GPUs need ddp"):
        replace(TINY, strategy="one")
    with pytest.raises(OptionError, match="8 GPUs cannot be divided by it"):
        replace(TINY, strategy="fsdp2", shard=3)
    with pytest.raises(OptionError, match="tensor is 3; the 8 GPUs of a node"):
        replace(TINY, strategy="fsdp2", tensor=3)
    with pytest.raises(OptionError, match="--tokens is 20"):
        PLANNER.memory(replace(TINY, tokens=20))


def test_published_sizes_add_up_to_the_parameters_of_the_checkpoints() -> None:
    published = {  # as the checkpoints are known to have; not looked up again
        "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
        "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
        "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
        "llava-hf/llava-1.5-7b-hf": 7_063_427_072,
        "llava-hf/llava-v1.6-mistral-7b-hf": 7_566_747_648,
        "OpenGVLab/InternVL3-8B-hf": 7_944_373_760,
        "google/gemma-3-4b-it": 4_300_079_472,
    }
    for weights_, parameters in published.items():
        family = published_sizes()[weights_]["model_type"]
        setting = replace(TINY, backbone=BackboneConfig(name=family, weights=weights_))
        pointer = PLANNER.sizes(setting)["pointer"].all
        assert weights(setting) - pointer == parameters
