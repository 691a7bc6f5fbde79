"""A blank image runs all of the tower and changes nothing, and a batch of images is one call of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from v1lit.backbones import BackboneConfig, get_backbone
from v1lit.backbones.load import load_backbone, part_parameters
from v1lit.backbones.processor import load_processor

pytestmark = pytest.mark.dependencies

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "llava", "internvl"]


def tiny(name: str, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return load_backbone(BackboneConfig(name, **options)).train()


def trainable(name: str, model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """What is trained of the vision tower and the projector."""
    parts = {**part_parameters(model, get_backbone(name), "vision")}
    parts.update(part_parameters(model, get_backbone(name), "projector"))
    return {path: parameter for path, parameter in parts.items() if parameter.requires_grad}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_blank_image_gives_every_parameter_a_gradient_of_zero(
    name: str, attention: str, dtype: str
) -> None:
    model, backbone = tiny(name, attention=attention, dtype=dtype), get_backbone(name)
    blank = backbone.blank_image(model)
    assert set(blank) == set(backbone.image_inputs)
    features = backbone.encode_images(model, **blank)
    assert features.shape[1] == model.config.get_text_config().hidden_size
    assert features.isfinite().all()
    (0 * features).sum().backward()
    parameters = trainable(name, model)
    assert len(parameters) > 10
    for path, parameter in parameters.items():
        assert parameter.grad is not None, path
        assert (parameter.grad == 0).all(), path


@pytest.mark.parametrize("name", FAMILIES)
def test_a_blank_image_is_as_small_as_the_family_allows(name: str) -> None:
    model, backbone = tiny(name, dtype="bfloat16"), get_backbone(name)
    blank = backbone.blank_image(model)
    assert blank["pixel_values"].dtype == torch.bfloat16
    assert not blank["pixel_values"].any()
    # One image token where sizes are free; one image or tile where they are not.
    tokens = {"llava": 36, "internvl": 4}.get(name, 1)
    assert len(backbone.encode_images(model, **blank)) == tokens


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_a_blank_image_fits_patches_of_any_size(name: str) -> None:
    model, backbone = tiny(name, tiny={"patch_size": 7, "temporal_patch_size": 1}), get_backbone(name)
    assert len(backbone.encode_images(model, **backbone.blank_image(model))) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_blank_images_are_made_where_the_tower_is(name: str) -> None:
    model = tiny(name).to("meta")
    assert {value.device.type for value in get_backbone(name).blank_image(model).values()} == {"meta"}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_of_images_is_one_call_of_the_tower(name: str) -> None:
    model, backbone = tiny(name), get_backbone(name)
    calls: list[str] = []
    for path in (*backbone.parts["vision"], *backbone.parts["projector"]):
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path))
    sizes = [(84, 84), (60, 140), (200, 30), (84, 84)]
    tensors, maps = load_processor(BackboneConfig(name)).images([Image.new("RGB", size) for size in sizes])
    assert len(backbone.encode_images(model, **tensors)) == sum(map(len, maps))
    assert sorted(calls) == sorted((*backbone.parts["vision"], *backbone.parts["projector"]))


@pytest.mark.parametrize(("taken", "unused"), [(-1, 0), (-2, 1), (3, 0), (2, 1), (1, 2), ([1, -3], 2)])
def test_llava_trains_only_what_its_features_come_from(taken: int | list[int], unused: int) -> None:
    backbone, model = get_backbone("llava"), tiny("llava", tiny={"vision_layers": 3})
    model.requires_grad_(True)
    model.config.vision_feature_layer = taken
    tower = model.model.vision_tower
    unused_layers = [*tower.encoder.layers[3 - unused :], tower.post_layernorm]
    assert backbone.unused_modules(model) == unused_layers
    backbone.prepare(model)
    if not isinstance(taken, int):  # two layers side by side need a wider projector
        return
    backbone.encode_images(model, **backbone.blank_image(model)).sum().backward()
    for path, parameter in part_parameters(model, backbone, "vision").items():
        assert (parameter.grad is not None) == parameter.requires_grad, path


@pytest.mark.parametrize("name", FAMILIES)
def test_every_builtin_decoder_packs(name: str) -> None:
    assert get_backbone(name).packs is True
