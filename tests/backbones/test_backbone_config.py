"""A wrong value in ``model.backbone`` is named before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from v1lit.backbones import BackboneConfig
from v1lit.backbones.load import check_backbone_config


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dtype": "float23"}, "'float23'.*did you mean 'float32'.*allowed: auto, bfloat16"),
        ({"views": "tile"}, "'tile'.*did you mean 'tiles'"),
        ({"freeze": ["visoin"]}, "'visoin'.*did you mean 'vision'.*allowed: language, pointer"),
    ],
)
def test_values_that_no_backbone_takes_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BackboneConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "lava"}, "'lava'.*did you mean 'llava'"),
        (
            {"image": {"max_pixel": 5}},
            r"model\.backbone\.image: .*'max_pixel' \(did you mean 'max_pixels'\?\)",
        ),
        ({"image": {"max_side": 0}}, "max_side must be a positive integer, not 0"),
        ({"image": {"min_pixels": 10**6, "max_pixels": 100}}, "min_pixels=1000000 is above max_pixels=100"),
        ({"image": {"max_pixels": "big"}}, "max_pixels must be a positive integer, not 'big'"),
        (
            {"tiny": {"hiden_size": 5}},
            r"model\.backbone\.tiny: .*'hiden_size' \(did you mean 'hidden_size'\?\)",
        ),
        ({"tiny": {"hidden_size": 30, "heads": 4}}, "hidden_size=30 must be a multiple of heads=4"),
        ({"name": "llava", "image": {"do_pad": 1}}, "do_pad must be true or false"),
        ({"name": "llava", "image": {"do_center_crop": False}}, "add do_pad=True"),
        (
            {"name": "llava", "image": {"crop_size": {"width": 3}}},
            "crop_size takes one number or height and width",
        ),
        ({"name": "internvl", "image": {"min_patches": 5, "max_patches": 4}}, "min_patches=5 is above"),
        ({"name": "internvl", "image": {"size": 450}}, "not made of whole tokens"),
    ],
)
def test_values_that_this_backbone_does_not_take_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_backbone_config(BackboneConfig(**wrong))


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "llava", "internvl"])
def test_the_defaults_are_accepted(name: str) -> None:
    assert check_backbone_config(BackboneConfig(name, image={"max_side": 672})).name == name
