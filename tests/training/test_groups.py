"""Rates of parts and layers: every parameter that learns has exactly one."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v1lit.backbones import list_backbones
from v1lit.backbones.config import BackboneConfig
from v1lit.errors import OptionError
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.config import OptimizerConfig
from v1lit.training.groups import Place, learning_rates, places
from v1lit.training.optimizer import build_optimizer

FAMILIES = ("qwen2_5_vl", "llava", "internvl")
PARTS = {"vision": {"lr": 2e-6, "weight_decay": 0.0}, "pointer": {"lr": 1e-4}}


@cache
def model(family: str, *frozen: Any) -> PointAndCopyModel:
    return PointAndCopyModel.build(BackboneConfig(family, freeze=list(frozen)))


def built(family: str, config: OptimizerConfig, *frozen: Any) -> torch.optim.Optimizer:
    own = model(family, *frozen)
    return build_optimizer(own.named_parameters(remove_duplicate=False), config, places(own, config))


OWN = st.dictionaries(st.sampled_from(["lr", "weight_decay"]), st.floats(1e-6, 1e-2), min_size=1)


@settings(max_examples=15, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    name=st.sampled_from(["adamw", "muon"]),
    parts=st.dictionaries(st.sampled_from(["language", "projector", "pointer"]), OWN),
    decay=st.sampled_from([1.0, 0.9, 0.5]),
    frozen=st.sampled_from([(), ("vision",)]),
)
def test_the_groups_hold_every_trainable_parameter_exactly_once(
    family: str, name: Any, parts: dict[str, dict[str, float]], decay: float, frozen: tuple[str, ...]
) -> None:
    config = OptimizerConfig(name=name, parts=parts, layer_decay=decay)
    held = [id(p) for group in built(family, config, *frozen).param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model(family, *frozen).parameters() if p.requires_grad}


def test_each_parameter_has_the_rate_and_the_decay_of_its_part() -> None:
    config = OptimizerConfig(lr=3e-5, weight_decay=0.1, parts=PARTS)
    own = model("qwen2_5_vl")
    names = {id(p): name for name, p in own.named_parameters()}
    for group in built("qwen2_5_vl", config).param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            vision = ".visual." in name and ".merger." not in name
            pointer = name.startswith("pointer_head")
            assert group["lr"] == (2e-6 if vision else 1e-4 if pointer else 3e-5), name
            assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 and not vision else 0.0), name


@pytest.mark.parametrize("family", list_backbones())
def test_each_layer_has_that_much_less_than_the_one_above_and_embeddings_least(family: str) -> None:
    own = model(family)
    found = places(own, OptimizerConfig(layer_decay=0.5))
    names = {id(p): name for name, p in own.named_parameters()}
    for part in ("language", "vision"):
        layers = own.family.layers(own.backbone, part)
        depths = [
            {found[names[id(p)]].depth for p in layer.parameters() if p.requires_grad} for layer in layers
        ]
        depths = [depth for depth in depths if depth]  # LLaVA's highest is not used
        assert depths == [{depth} for depth in reversed(range(len(depths)))]
    deepest = len(own.family.layers(own.backbone, "language"))
    assert found[names[id(own.backbone.get_input_embeddings().weight)]].depth == deepest
    assert all(
        place.depth == 0 for name, place in found.items() if "pointer_head" in name or "projector" in name
    )
    assert Place("", 2).rate(OptimizerConfig(lr=1.0, layer_decay=0.5)) == 0.25


def test_without_parts_and_decay_the_groups_are_matrices_and_vectors() -> None:
    assert len(built("qwen2_5_vl", OptimizerConfig()).param_groups) == 2


def test_a_part_of_which_nothing_learns_is_refused_with_those_that_learn() -> None:
    with pytest.raises(
        OptionError, match=r"parts.vision is .*nothing of vision learns.* projector, language"
    ):
        built("qwen2_5_vl", OptimizerConfig(parts=PARTS), "vision")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"parts": {"visoin": {"lr": 1e-3}}},
            "parts.visoin is .*did you mean 'vision'. allowed: vision, proj",
        ),
        ({"parts": {"vision": {"rate": 1e-3}}}, "parts.vision is .*give its lr, its weight_decay, or both"),
        ({"parts": {"vision": {"lr": 0.0}}}, "parts.vision.lr is 0.0; it must be positive"),
        ({"parts": {"vision": {"weight_decay": -1.0}}}, "parts.vision.weight_decay is -1.0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        OptimizerConfig(**options)


def test_logged_rates_are_the_own_ones_times_the_schedule() -> None:
    config = OptimizerConfig(lr=1e-2, parts=PARTS, layer_decay=0.9)
    optimizer = built("qwen2_5_vl", config)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert learning_rates(optimizer.param_groups, config) == pytest.approx(
        {
            "train/learning_rate": 5e-3,
            "train/learning_rate_vision": 1e-6,
            "train/learning_rate_pointer": 5e-5,
        }
    )
