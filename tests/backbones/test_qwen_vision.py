"""The fast Qwen vision parts give what the stock ones give, gradients included, under the same names."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import Tensor

from v1lit.backbones import BackboneConfig, get_backbone, qwen_vision
from v1lit.backbones.load import load_backbone
from v1lit.backbones.qwen_vision import REPLACEMENTS, LengthGroups, attention_by_length, group_by_length

pytestmark = pytest.mark.dependencies

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]
CPU = torch.device("cpu")
# Rows and columns of patches. Windows are 8x8 patches: whole ones, cut ones, and images below one window.
SAME = [(12, 12)] * 3
MIXED = [(12, 12), (4, 6), (16, 8), (2, 2), (10, 22)]


def stock_twin(name: str, model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    config = copy.deepcopy(model.config)
    stock = getattr(transformers, get_backbone(name).model_class)(config)
    stock.load_state_dict(model.state_dict())
    assert not any(type(module) in REPLACEMENTS.values() for module in stock.modules())
    return stock


def inputs(grids: list[tuple[int, int]], name: str) -> dict[str, Tensor]:
    side = get_backbone(name).tiny_sizes["patch_size"]
    generator = torch.Generator().manual_seed(1)
    tokens = sum(rows * cols for rows, cols in grids)
    return {
        "pixel_values": torch.randn(tokens, 3 * 2 * side * side, generator=generator),
        "image_grid_thw": torch.tensor([[1, rows, cols] for rows, cols in grids]),
    }


def stock_features(model: transformers.PreTrainedModel, images: dict[str, Tensor]) -> Tensor:
    """Without anything of ours: the stock method works out the grids itself."""
    output = model.get_image_features(**images, return_dict=True)
    deep = getattr(output, "deepstack_features", ())
    return torch.cat([torch.cat(features) for features in (output.pooler_output, *deep)], dim=1)


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
    images = inputs(grids, name)
    features = [get_backbone(name).encode_images(fast, **images), stock_features(stock, images)]
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
    twin, images = copy.deepcopy(model), inputs(SAME, name)
    before = get_backbone(name).encode_images(twin, **images)
    with torch.no_grad():
        model.model.visual.patch_embed.proj.weight.zero_()
    assert torch.equal(get_backbone(name).encode_images(twin, **images), before)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    model = load_backbone(BackboneConfig(name)).train()
    backbone, images, gradients = get_backbone(name), inputs(MIXED, name), []
    for switch in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        switch()
        model.zero_grad()
        backbone.encode_images(model, **images).square().sum().backward()
        gradients.append(model.model.visual.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "lengths", [[3, 3, 3], [1], [2, 5, 2, 1, 5], [2, 5, 2, 5, 2, 0, 5], [4, 0, 4], [0, 3, 1]]
)
def test_segments_attend_to_themselves_only(lengths: list[int]) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, sum(lengths), 2, 4, dtype=torch.float64)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    expected = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        expected.append(((q @ k.mT * 0.3).softmax(-1) @ v).transpose(0, 1))
    torch.testing.assert_close(attention_by_length(query, key, value, bounds, 0.3), torch.cat(expected))


@pytest.mark.parametrize("lengths", [[3, 3, 3], [2, 5, 2, 1, 5], [2, 5, 2, 5, 2, 0, 5]])
def test_attention_has_the_gradients_of_a_loop_over_segments(lengths: list[int]) -> None:
    torch.manual_seed(0)
    rows = torch.randn(3, sum(lengths), 2, 4, dtype=torch.float64).unbind()
    one, other = ([x.clone().requires_grad_() for x in rows] for _ in range(2))
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    weight = torch.randn(sum(lengths), 2, 4, dtype=torch.float64)
    (attention_by_length(one[0], one[1], one[2], bounds, 0.3) * weight).sum().backward()
    parts = zip(*(x.split(lengths) for x in other), strict=True)
    outputs = [attention_by_length(q, k, v, torch.tensor([0, len(q)]), 0.3) for q, k, v in parts if len(q)]
    (torch.cat(outputs) * weight).sum().backward()
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize(
    ("lengths", "groups", "tokens"),
    [
        ([7], (7,), (7,)),
        ([3, 3, 3], (3,), (9,)),
        ([5, 5, 2, 2], (5, 2), (10, 4)),
        ([4, 0, 4], (4,), (8,)),
        ([2, 3, 0, 2, 2], (2, 3, 2), (2, 3, 4)),
    ],
    ids=str,
)
def test_tokens_stay_where_moving_them_saves_few_calls(
    lengths: list[int], groups: tuple[int, ...], tokens: tuple[int, ...]
) -> None:
    assert group_by_length(lengths, CPU) == LengthGroups(groups, tokens)


def test_equal_lengths_are_brought_together_where_that_saves_calls() -> None:
    groups = group_by_length([2, 3, 0, 2, 3, 2], CPU)
    assert (groups.lengths, groups.tokens) == ((2, 3), (6, 6))
    assert groups.order is not None
    assert groups.back is not None
    assert groups.order.tolist() == [0, 1, 5, 6, 10, 11, 2, 3, 4, 7, 8, 9]
    assert groups.order[groups.back].tolist() == list(range(12))


@pytest.mark.parametrize("name", FAMILIES)
def test_segments_are_grouped_once_per_batch_and_not_in_every_layer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[int]] = []

    def counted(lengths: list[int], device: torch.device) -> LengthGroups:
        calls.append(lengths)
        return group_by_length(lengths, device)

    monkeypatch.setattr(qwen_vision, "group_by_length", counted)
    sizes = {"vision_layers": 6} | ({"full_attention_layers": [2, 5]} if name == "qwen2_5_vl" else {})
    model = load_backbone(BackboneConfig(name, tiny=sizes, gradient_checkpointing=["vision"])).train()
    get_backbone(name).encode_images(model, **inputs(MIXED, name)).sum().backward()
    assert len(calls) == (2 if name == "qwen2_5_vl" else 1)
