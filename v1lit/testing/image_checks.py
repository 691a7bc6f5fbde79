"""What is checked of a family's images: options, patch maps, features, and a blank image."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from v1lit.backbones.classes import named_class
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.image_options import PIXEL_OPTIONS
from v1lit.backbones.image_settings import WITHOUT_EFFECT, pinned
from v1lit.backbones.load import load_backbone, part_parameters
from v1lit.backbones.processor import load_processor
from v1lit.backbones.registry import get_backbone
from v1lit.testing.models import noise, processor
from v1lit.testing.parity import assert_refused
from v1lit.testing.patch_maps import assert_patch_map
from v1lit.training.self_test import assert_parity

PAINTED = [(300, 180), (170, 420)]
"""Widths and heights of images that rectangles are painted into."""


def image_options(name: str) -> str:
    """Every setting of the image processor has a place, and every option reaches it."""
    backbone = get_backbone(name)
    cls = named_class(backbone.processor_class)
    settings = set(cls.valid_kwargs.__annotations__)
    taken = {*backbone.image_defaults, *PIXEL_OPTIONS}
    places = [taken, set(pinned(backbone)), {*WITHOUT_EFFECT, *backbone.harmless} - taken]
    homeless = sorted(settings - set().union(*places))
    assert not homeless, (
        f"{backbone.processor_class} has the settings {homeless}: state them in image_defaults, or say in "
        "image_settings.py what becomes of them"
    )
    config, made = load_backbone(BackboneConfig(name)).config, backbone.image_processor("tiny")
    options = made.options
    assert backbone.canonical(options) == options, f"canonical options change once more: {options}"
    read = {**backbone.image_defaults, **backbone.checkpoint_image_options(made.processor, config)}
    assert backbone.canonical(read) == options, f"the processor is made of {options}, but has {read}"
    backbone.check_fit(options, config)
    backbone.image_processor()
    for key, value in (("no_such_option", 1), ("max_side", 0)):
        option: dict[str, Any] = {key: value}
        wrong = partial(backbone.image_processor, "tiny", **option)
        assert_refused(wrong, key, f"the image option {key}={value}")
    return f"{len(settings)} settings of {backbone.processor_class}, {len(options)} options"


def patch_map(name: str) -> str:
    """A rectangle painted into a blank image changes exactly the tokens that the patch map names."""
    hits = sum(assert_patch_map(name, size) for size in PAINTED)
    config = BackboneConfig(name, image={"max_side": 90}, views="tiles")
    capped = load_processor(config)
    images = [noise((200, 120)), noise((50, 60), 1)]
    tensors, maps = capped.images(images)
    assert set(tensors) == set(get_backbone(name).image_inputs), f"the images' tensors are {sorted(tensors)}"
    known = [capped.patch_map(image.size, among=len(images)) for image in images]
    assert maps == known, "patch_map says something else of an image's size than of the image"
    return f"{hits} rectangles painted into images, and the tokens that changed"


def images(name: str) -> tuple[str, float]:
    """An image sees itself only, and features come in the order of the images."""
    model, of = load_backbone(BackboneConfig(name)).eval(), processor(name)
    pictures = [noise((168, 168)), noise((90, 200), 1), noise((168, 168), 2), noise((60, 60), 3)]
    tensors, maps = of.images(pictures, among=1)
    with torch.no_grad():
        together = of.backbone.encode_images(model, **tensors)
        alone = [of.backbone.encode_images(model, **of.images([picture])[0]) for picture in pictures]
    counts, lengths = [len(features) for features in alone], [len(patch_map) for patch_map in maps]
    assert counts == lengths, f"images have {counts} features, and patch maps of {lengths} tokens"
    deep = of.backbone.deep_layers(model.config)
    width = model.config.get_text_config().hidden_size * (1 + deep)
    assert together.shape[1:] == (width,), f"features of {tuple(together.shape)}, not of the width {width}"
    return "features of images together and alone", assert_parity("features", together, torch.cat(alone))


def blank_image(name: str) -> str:
    """A blank image runs all of the tower: every weight that learns gets a gradient, of zero."""
    backbone = get_backbone(name)
    options: list[dict[str, Any]] = [{}, {"attention": "eager"}, {"dtype": "bfloat16"}]
    for option in options:
        torch.manual_seed(0)
        model = load_backbone(BackboneConfig(name, **option)).train()
        blank = backbone.blank_image(model)
        assert set(blank) == set(backbone.image_inputs), f"blank_image has {sorted(blank)}"
        pixels = [value for value in blank.values() if value.is_floating_point()]
        assert not any(value.any() for value in pixels), "the blank image is not blank"
        features = backbone.encode_images(model, **blank)
        assert features.isfinite().all(), "features of the blank image are not finite"
        (0 * features).sum().backward()
        trained = [part_parameters(model, backbone, part) for part in ("vision", "projector")]
        learning = {path: p for part in trained for path, p in part.items() if p.requires_grad}
        assert learning, "nothing of vision and projector learns"
        for path, parameter in learning.items():
            assert parameter.grad is not None, f"{path} gets no gradient; is it one of unused_modules?"
            assert not parameter.grad.any(), f"{path} gets a gradient from a blank image"
    places = {value.device.type for value in backbone.blank_image(model.to("meta")).values()}
    assert places == {"meta"}, f"blank_image stands on {sorted(places)}, not on the tower's device"
    return f"gradients of {len(learning)} weights, {len(features)} tokens"
