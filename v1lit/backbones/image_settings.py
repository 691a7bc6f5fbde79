"""Every setting of a saved image processor: taken over, held to a value, without effect, or refused.

A patch map says which pixels a token sees. It is right only while the image processor does what the family's
code believes, so a setting that nobody has thought of is refused by name rather than left to chance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from v1lit.backbones.classes import class_name
from v1lit.backbones.contract import Backbone
from v1lit.backbones.image_options import PIXEL_OPTIONS, check_pixel_options

PINNED: dict[str, tuple[Any, ...]] = {
    "do_resize": (True,),
    "do_pad": (None, False),
    "do_center_crop": (None, False),
    "data_format": (None, "channels_first"),
    "input_data_format": (None, "channels_first"),
    "device": (None, "cpu"),
}
"""Setting -> the values that it may have, unless the family takes it over as one of its image options."""

WITHOUT_EFFECT: dict[str, str] = {
    "do_convert_rgb": "images are RGB before they reach the processor",
    "return_tensors": "always PyTorch's",
    "disable_grouping": "images are stacked by shape or not, with the same values",
    "default_to_square": "says how a single number in `size` is read, which has happened",
    "crop_size": "without do_center_crop nothing is cropped",
    "pad_size": "without do_pad nothing is padded; LLaVA pads to a square",
    "image_seq_length": "tokens are counted from the vision tower's config",
    "image_processor_type": "checked apart",
    "image_processor_class": "as above",
    "feature_extractor_type": "the name of image processors before",
    "processor_class": "the family's processor is not used",
    "auto_map": "refused apart",
    "backend": "the processor that runs on torchvision is used",
    "use_fast": "the processor that runs on torchvision is used",
}


def check_settings(backbone: Backbone, processor: Any, saved: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting that the patch maps of a family do not know.

    `saved` are the settings as they stand in the file, `processor` is made from them; absent ones are its
    class's.
    """
    _check_class(backbone, saved)
    for key, value in saved.items():
        if value is None or key.startswith("_") or has_place(backbone, key):
            continue
        if (
            key in type(processor).valid_kwargs.__annotations__
            and getattr(type(processor), key, None) == value
        ):
            continue  # What the installed class does anyway.
        raise ValueError(
            f"{key} is {json_word(value)}, a setting that v1lit does not know and would leave out\n"
            "take it out of the file if it does not change images, or use another checkpoint"
        )
    for key, allowed in pinned(backbone).items():
        value = getattr(processor, key, None)
        if getattr(value, "value", value) not in allowed:
            wanted = json_word(allowed[-1])
            raise ValueError(
                f"{key} is {json_word(value)}, but the patch maps of {backbone.name} need {wanted}\n"
                f"set it to {wanted} there, and give images as they are"
            )
    check_pixel_options({key: getattr(processor, key, None) for key in PIXEL_OPTIONS})


def has_place(backbone: Backbone, key: str) -> bool:
    """Whether a setting has a place in the lists of a family."""
    without_effect = (*WITHOUT_EFFECT, *backbone.harmless)
    return key in (*backbone.image_defaults, *PIXEL_OPTIONS, *pinned(backbone), *without_effect)


def pinned(backbone: Backbone) -> dict[str, tuple[Any, ...]]:
    """The settings that must have one of these values for a family's patch maps to be right."""
    free = (*backbone.image_defaults, *backbone.harmless)
    return {key: allowed for key, allowed in PINNED.items() if key not in free}


def json_word(value: Any) -> str:
    """A value as it is written in a JSON file."""
    return json.dumps(getattr(value, "value", value), default=str)


def _check_class(backbone: Backbone, saved: Mapping[str, Any]) -> None:
    """Another class of image processor may do anything with the same settings."""
    if saved.get("auto_map"):
        raise ValueError("auto_map names code of its own, which v1lit does not run")
    own = class_name(backbone.processor_class)
    kind = str(saved.get("image_processor_type") or own)
    if kind.removesuffix("Fast").removesuffix("Pil") not in (own, *backbone.processor_aliases):
        raise ValueError(
            f"image_processor_type is {kind}, but {backbone.name} makes its images with {own}\n"
            f"use the settings of a checkpoint such as {backbone.hub_id}"
        )
