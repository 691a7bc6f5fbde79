"""A setting of a saved image processor is taken over, held to a value, without effect, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.stock_folders import edit_json, stock_folder

from v1lit.backbones import get_backbone, list_backbones
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.image_settings import PINNED, pinned
from v1lit.backbones.processor import Processor, load_processor
from v1lit.testing.models import noise

pytestmark = pytest.mark.dependencies

FILE = "preprocessor_config.json"


def processor_with(folder: Path, family: str, **settings: Any) -> Processor:
    """The processor of a stock checkpoint with these settings in its file."""
    stock_folder(folder, family)
    edit_json(folder / FILE, lambda content: content.update(settings))
    return load_processor(BackboneConfig(family, weights=str(folder)))


@pytest.mark.parametrize(
    ("family", "key"), [(family, key) for family in list_backbones() for key in pinned(get_backbone(family))]
)
def test_a_setting_that_would_belie_the_patch_map_is_refused(family: str, key: str, tmp_path: Path) -> None:
    wrong: dict[str, Any] = {
        "do_resize": False,
        "data_format": "channels_last",
        "input_data_format": "channels_last",
        "device": "cuda",
    }
    with pytest.raises(
        ValueError, match=rf"{FILE}: {key} is .*, but the patch maps of {family} need"
    ) as error:
        processor_with(tmp_path, family, **{key: wrong.get(key, True)})
    assert len(str(error.value).splitlines()) == 2
    processor_with(tmp_path, family, **{key: PINNED[key][0]})


TAKEN: list[tuple[str, str, Any]] = [
    *[(family, "do_rescale", False) for family in list_backbones()],
    *[(family, "do_normalize", False) for family in list_backbones()],
    *[(family, "rescale_factor", 1 / 127.5) for family in list_backbones()],
    *[(family, "image_mean", [0.4, 0.4, 0.4]) for family in list_backbones()],
    *[(family, "image_std", [0.4, 0.4, 0.4]) for family in list_backbones()],
    *[(family, "resample", 0) for family in list_backbones()],
    ("qwen2_5_vl", "min_pixels", 200 * 200),
    ("qwen2_vl", "max_pixels", 60 * 60),
    ("qwen2_5_vl", "size", {"shortest_edge": 3136, "longest_edge": 4000}),
    ("llava", "size", {"shortest_edge": 100}),
    ("llava", "size", {"height": 84, "width": 84}),
    ("llava", "do_pad", True),
    ("internvl", "max_patches", 2),
    ("internvl", "min_patches", 9),
]


@pytest.mark.parametrize(("family", "key", "value"), TAKEN)
def test_a_setting_that_is_taken_over_makes_other_pixels(
    family: str, key: str, value: Any, tmp_path: Path
) -> None:
    plain = load_processor(BackboneConfig(family)).images([noise((100, 70))])[0]["pixel_values"]
    tensors, maps = processor_with(tmp_path, family, **{key: value}).images([noise((100, 70))])
    assert plain.shape != tensors["pixel_values"].shape or not torch.equal(plain, tensors["pixel_values"])
    model_tokens = sum(map(len, maps))
    assert model_tokens > 0


@pytest.mark.parametrize("family", list_backbones())
def test_settings_without_effect_and_absent_ones_are_accepted(family: str, tmp_path: Path) -> None:
    plain = load_processor(BackboneConfig(family)).images([noise((100, 70))])[0]["pixel_values"]
    settings = {
        "do_convert_rgb": False,
        "disable_grouping": True,
        "pad_size": {"height": 3, "width": 3},
        "_valid_processor_keys": ["images"],
        "a_setting_that_is_null": None,
    }
    processor = processor_with(tmp_path, family, **settings)
    assert torch.equal(processor.images([noise((100, 70))])[0]["pixel_values"], plain)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llava", {"do_flip": True}, "do_flip is true, a setting that v1lit does not know"),
    (
        "llava",
        {"image_processor_type": "SiglipImageProcessor"},
        "image_processor_type is SiglipImageProcessor",
    ),
    ("internvl", {"auto_map": {"AutoImageProcessor": "a.B"}}, "auto_map names code of its own"),
    ("qwen2_5_vl", {"image_std": [0.0, 1.0, 1.0]}, "image_std is .*must be above 0"),
    ("qwen2_5_vl", {"image_mean": [0.5] * 4}, "image_mean is .* one number, or one for each"),
    ("qwen2_5_vl", {"image_mean": "0.5"}, "image_mean is"),
    ("qwen2_5_vl", {"rescale_factor": 0}, "rescale_factor is 0; it must be a number above 0"),
    ("qwen2_5_vl", {"do_normalize": "no"}, "do_normalize is .* true or false"),
    ("qwen2_5_vl", {"resample": 17}, "resample is 17; give one of Pillow's filters"),
    ("qwen2_5_vl", {"size": {"height": 28, "width": 28}}, "size must have shortest_edge and longest_edge"),
    ("qwen2_5_vl", {"min_pixels": 10**9}, "is above max_pixels"),
    ("qwen2_5_vl", {"size": "large"}, "cannot be read|size"),
    ("llava", {"patch_size": 16}, "patch_size is 16, but the model's config says 14"),
    ("llava", {"do_center_crop": False}, "images of any shape"),
    ("llava", {"size": {"longest_edge": 84}}, "size is .* one number or shortest_edge"),
    ("internvl", {"size": {"shortest_edge": 56}}, "size is .* one number or height and width"),
    ("internvl", {"max_patches": 0}, "max_patches is 0; it must be a positive integer"),
]


@pytest.mark.parametrize(("family", "settings", "message"), REFUSED)
def test_what_cannot_be_taken_over_is_named_with_its_file(
    family: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        processor_with(tmp_path, family, **settings)
    assert str(tmp_path / FILE) in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("family", "settings"), [("qwen2_5_vl", {"patch_size": 16}), ("llava", {"crop_size": 56})]
)
def test_settings_that_do_not_fit_the_vision_tower_are_refused(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path}: the vision tower"):
        processor_with(tmp_path, family, **settings)


def test_a_setting_of_tomorrow_is_accepted_with_the_value_that_the_class_has_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llava.image_processing_llava import LlavaImageProcessor as Known

    class Tomorrow(Known.valid_kwargs):  # type: ignore[misc, name-defined]
        antialias: bool

    monkeypatch.setattr(Known, "valid_kwargs", Tomorrow)
    monkeypatch.setattr(Known, "antialias", True, raising=False)
    processor_with(tmp_path, "llava", antialias=True)
    with pytest.raises(ValueError, match="antialias is false, a setting that v1lit does not know"):
        processor_with(tmp_path, "llava", antialias=False)


def test_settings_that_stand_twice_must_agree(tmp_path: Path) -> None:
    stock_folder(tmp_path)
    inner = json.loads((tmp_path / FILE).read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    config = BackboneConfig(weights=str(tmp_path))
    load_processor(config)
    edit_json(tmp_path / FILE, lambda content: content.update(do_normalize=False))
    with pytest.raises(ValueError, match="do not agree on do_normalize"):
        load_processor(config)


def test_the_settings_of_a_processor_saved_in_the_folder_hold(tmp_path: Path) -> None:
    stock_folder(tmp_path)
    load_processor(BackboneConfig(image={"max_side": 60})).save_pretrained(tmp_path)
    config = BackboneConfig(weights=str(tmp_path))
    assert load_processor(config).image_options["max_side"] == 60
    config.image = {"max_side": 90}
    assert load_processor(config).image_options["max_side"] == 90


@pytest.mark.parametrize("family", list_backbones())
def test_a_saved_processor_is_held_to_the_same(family: str, tmp_path: Path) -> None:
    load_processor(BackboneConfig(family)).save_pretrained(tmp_path)
    Processor.from_pretrained(tmp_path)
    edit_json(tmp_path / FILE, lambda content: content.update(do_resize=False))
    with pytest.raises(ValueError, match="do_resize is false"):
        Processor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"image_std": [0, 1, 1]}, "image_std is"),
        ({"resample": "bicubic"}, "resample is 'bicubic'; give one of"),
    ],
)
def test_a_recipes_options_are_held_to_the_same(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_processor(BackboneConfig(image=option))
