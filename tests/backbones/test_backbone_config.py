"""A wrong value in ``model.backbone`` is named before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from v1lit.backbones import BackboneConfig, list_backbones
from v1lit.backbones.load import check_backbone_config
from v1lit.errors import OptionError


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dtype": "float23"}, "dtype is 'float23'; did you mean 'float32'. allowed: float32, bfloat16"),
        ({"views": "tile"}, "'tile'.*did you mean 'tiles'"),
        ({"attention": "flash"}, "attention is 'flash'.*allowed: auto, sdpa"),
        ({"freeze": ["vision", "laguage"]}, "no 'laguage'; did you mean 'language'. allowed: vision, proj"),
    ],
)
def test_values_that_no_backbone_takes_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BackboneConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "key", "why"),
    [
        ({"name": "lava"}, "name", "did you mean 'llava'"),
        ({"image": {"max_pixel": 5}}, "image.max_pixel", "did you mean 'max_pixels'"),
        ({"image": {"max_side": 0}}, "image.max_side", "a positive integer"),
        ({"image": {"min_pixels": 10**6, "max_pixels": 100}}, "image.min_pixels", "above max_pixels=100"),
        ({"image": {"max_pixels": "big"}}, "image.max_pixels", "a positive integer"),
        ({"tiny": {"hiden_size": 5}}, "tiny.hiden_size", "did you mean 'hidden_size'"),
        ({"tiny": {"hidden_size": 30, "heads": 4}}, "tiny.hidden_size", "a multiple of heads=4"),
        ({"name": "llava", "image": {"do_pad": 1}}, "image.do_pad", "true or false"),
        ({"name": "llava", "image": {"do_center_crop": False}}, "image.do_center_crop", "add do_pad=True"),
        (
            {"name": "llava", "image": {"crop_size": {"width": 3}}},
            "image.crop_size",
            "give one number or height and width",
        ),
        (
            {"name": "internvl", "image": {"min_patches": 5, "max_patches": 4}},
            "image.min_patches",
            "above max_patches=4",
        ),
        ({"name": "internvl", "image": {"size": 450}}, "image.size", "not made of whole tokens"),
    ],
)
def test_values_that_this_backbone_does_not_take_are_refused(
    wrong: dict[str, Any], key: str, why: str
) -> None:
    with pytest.raises(OptionError, match=why) as error:
        check_backbone_config(BackboneConfig(**wrong))
    assert error.value.key == f"model.backbone.{key}"


@pytest.mark.parametrize("name", list_backbones())
def test_the_defaults_are_accepted(name: str) -> None:
    assert check_backbone_config(BackboneConfig(name, image={"max_side": 672})).name == name
