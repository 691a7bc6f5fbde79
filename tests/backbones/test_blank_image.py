"""A blank image runs all of the tower and changes nothing, and a batch of images is one call of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

from v1lit.backbones import BackboneConfig, get_backbone, list_backbones
from v1lit.backbones.load import load_backbone, part_parameters
from v1lit.backbones.processor import load_processor

pytestmark = pytest.mark.dependencies


def tiny(name: str, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return load_backbone(BackboneConfig(name, **options)).train()


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("qwen2_vl", 1),
        ("qwen2_5_vl", 1),
        ("qwen3_vl", 1),
        ("qwen3_5", 1),
        ("llava", 36),
        ("llava_next", 16 + 2 * 16 + 4),
        ("llava_onevision", 9 + 9 + 3),
        ("internvl", 4),
        ("timm_lm", 36),
        ("gemma3", 16),
    ],
)
def test_a_blank_image_is_as_small_as_the_family_allows(name: str, tokens: int) -> None:
    """One image token where sizes are free; one image or the fewest tiles where they are not."""
    model, backbone = tiny(name, dtype="bfloat16"), get_backbone(name)
    blank = backbone.blank_image(model)
    assert blank["pixel_values"].dtype == torch.bfloat16
    assert len(backbone.encode_images(model, **blank)) == tokens


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_a_blank_image_fits_patches_of_any_size(name: str) -> None:
    model, backbone = tiny(name, tiny={"patch_size": 7, "temporal_patch_size": 1}), get_backbone(name)
    assert len(backbone.encode_images(model, **backbone.blank_image(model))) == 1


@pytest.mark.parametrize("name", list_backbones())
def test_a_batch_of_images_is_one_call_of_the_tower(name: str) -> None:
    model, backbone = tiny(name), get_backbone(name)
    calls: list[str] = []
    first = backbone.layers(model, "vision")[0]
    paths = [next(path for path, module in model.named_modules() if module is first)]
    modules = dict(model.named_modules())
    for path in filter(modules.__contains__, backbone.parts["projector"]):  # not those of a parameter
        one = modules[path]
        paths += [f"{path}.{n}" for n in range(len(one))] if isinstance(one, torch.nn.ModuleList) else [path]
    for path in paths:
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path))
    sizes = [(84, 84), (60, 140), (200, 30), (84, 84)]
    tensors, maps = load_processor(BackboneConfig(name)).images([Image.new("RGB", size) for size in sizes])
    assert len(backbone.encode_images(model, **tensors)) == sum(map(len, maps))
    assert sorted(calls) == sorted(paths)


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


@pytest.mark.parametrize("name", list_backbones())
def test_every_builtin_decoder_packs(name: str) -> None:
    assert get_backbone(name).packs is True
