"""The fast Qwen vision parts give what the stock ones give, gradients included, under the same names."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import Tensor

from v1lit.backbones import BackboneConfig, get_backbone
from v1lit.backbones.load import load_backbone
from v1lit.backbones.qwen_vision import REPLACEMENTS, attention_by_length

FAMILIES = ["qwen2_vl", "qwen2_5_vl"]
# Rows and columns of patches. Windows are 8x8 patches: whole ones, cut ones, and images below one window.
SAME = [(12, 12)] * 3
MIXED = [(12, 12), (4, 6), (16, 8), (2, 2), (10, 22)]


def stock_twin(name: str, model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    config = copy.deepcopy(model.config)
    stock = getattr(transformers, get_backbone(name).model_class)(config)
    stock.load_state_dict(model.state_dict())
    assert not any(type(module) in REPLACEMENTS.values() for module in stock.modules())
    return stock


def inputs(grids: list[tuple[int, int]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = sum(rows * cols for rows, cols in grids)
    return {
        "pixel_values": torch.randn(tokens, 3 * 2 * 14 * 14, generator=generator),
        "image_grid_thw": torch.tensor([[1, rows, cols] for rows, cols in grids]),
    }


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("grids", [SAME, MIXED], ids=["same", "mixed"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_features_and_gradients_equal_the_stock_tower(
    name: str, grids: list[tuple[int, int]], attention: str
) -> None:
    torch.manual_seed(0)
    fast = load_backbone(BackboneConfig(name, attention=attention))
    stock = stock_twin(name, fast)
    assert sum(type(module) in REPLACEMENTS.values() for module in fast.modules()) == 3
    backbone, images = get_backbone(name), inputs(grids)
    features = [backbone.encode_images(model, **images) for model in (fast, stock)]
    torch.testing.assert_close(*features, rtol=1e-5, atol=1e-6)
    weight = torch.randn(features[0].shape, generator=torch.Generator().manual_seed(2))
    for feature in features:
        (feature * weight).sum().backward()
    gradients = [dict(model.model.visual.named_parameters()) for model in (fast, stock)]
    assert gradients[0].keys() == gradients[1].keys()
    for path, parameter in gradients[0].items():
        torch.testing.assert_close(parameter.grad, gradients[1][path].grad, rtol=1e-4, atol=1e-5, msg=path)


@pytest.mark.parametrize("name", FAMILIES)
def test_names_and_copies_are_those_of_the_stock_model(name: str) -> None:
    torch.manual_seed(0)
    model = load_backbone(BackboneConfig(name))
    assert list(stock_twin(name, model).state_dict()) == list(model.state_dict())
    # A copy computes with its own weights, not with those of the model it was copied from.
    twin, images = copy.deepcopy(model), inputs(SAME)
    before = get_backbone(name).encode_images(twin, **images)
    with torch.no_grad():
        model.model.visual.patch_embed.proj.weight.zero_()
    assert torch.equal(get_backbone(name).encode_images(twin, **images), before)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    model = load_backbone(BackboneConfig(name)).train()
    backbone, images, gradients = get_backbone(name), inputs(MIXED), []
    for switch in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        switch()
        model.zero_grad()
        backbone.encode_images(model, **images).square().sum().backward()
        gradients.append(model.model.visual.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("lengths", [[3, 3, 3], [1], [2, 5, 2, 1, 5], [4, 0, 4], [0, 3, 1]])
def test_segments_attend_to_themselves_only(lengths: list[int]) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, sum(lengths), 2, 4, dtype=torch.float64)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    expected = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        expected.append(((q @ k.mT * 0.3).softmax(-1) @ v).transpose(0, 1))
    torch.testing.assert_close(attention_by_length(query, key, value, bounds, 0.3), torch.cat(expected))
