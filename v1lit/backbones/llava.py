"""LLaVA-1.5: every image becomes one square, its middle cut out or its sides padded, one token per patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from v1lit.backbones.chat import ChatFormat
from v1lit.backbones.contract import Backbone, blank_pixels
from v1lit.backbones.image_options import as_size, check_flag, check_positive, plain_size
from v1lit.backbones.tiny import SIZES, text_sizes, token_id, vision_sizes
from v1lit.backbones.work import VisionWork, layers_used, square_work
from v1lit.errors import OptionError
from v1lit.grounding.patch_map import PatchMap, Views
from v1lit.grounding.region import Size

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MAX_CANVAS = 2**27
"""Pixels; its processor resizes and pads whole images before it cuts."""


class Llava(Backbone):
    """LLaVA-1.5: CLIP at 336 pixels, 24x24 tokens. What lies outside the cut has no token."""

    name = "llava"
    model_type = "llava"
    model_class = "LlavaForConditionalGeneration"
    hub_id = "llava-hf/llava-1.5-7b-hf"
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "language": ("model.language_model", "lm_head"),
    }
    chat = ChatFormat(
        system=("", " "),
        user=("USER: ", " "),
        assistant=("ASSISTANT: ", "</s>"),
        image=("", ""),
        image_token="<image>",
        stop="</s>",
        default_system=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        ),
        start="<s>",
        tokens=("<s>",),
    )
    features: ClassVar[tuple[str, str]] = ("clip_vision_model", "default")
    """`model_type` of the vision tower, and `vision_feature_select_strategy`: which of its rows are taken."""
    processor_class = "LlavaImageProcessor"
    processor_aliases: ClassVar[tuple[str, ...]] = ("CLIPImageProcessor", "CLIPFeatureExtractor")
    image_defaults: ClassVar[Mapping[str, Any]] = {
        "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336},
        "do_center_crop": True,
        "do_pad": False,
        "patch_size": 14,
    }
    pixel_defaults: ClassVar[Mapping[str, Any]] = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    tiny_sizes: ClassVar[Mapping[str, Any]] = {
        **SIZES,
        "kv_heads": 4,
        "image_size": 84,
    }

    def canonical(self, options: Mapping[str, Any]) -> dict[str, Any]:
        full = dict(options)
        # A single number means the shorter side for the resize, and a square for the cut.
        size = full["size"]
        full["size"] = as_size(
            "size", {"shortest_edge": size} if isinstance(size, int) else size, "shortest_edge"
        )
        full["crop_size"] = as_size("crop_size", full["crop_size"])
        check_positive("patch_size", full["patch_size"])
        check_flag("do_pad", full["do_pad"])
        if not check_flag("do_center_crop", full["do_center_crop"]):
            if "shortest_edge" in full["size"] and not full["do_pad"]:
                why = (
                    "it leaves images of any shape, which the vision tower cannot take; add do_pad=True or "
                    "give size as height and width"
                )
                raise OptionError("do_center_crop", False, why)
            side = full["size"].get("shortest_edge")
            full["crop_size"] = {"height": side, "width": side} if side else full["size"]
        return full

    def grid(self, image_size: Size, options: Mapping[str, Any], views: Views = "all") -> PatchMap:
        width, height = image_size
        left = top = 0.0
        if options["do_pad"]:
            side = max(width, height)
            left, top = -float((side - width) // 2), -float((side - height) // 2)
            width = height = side
            check_canvas(image_size, (side, side))
        new_width, new_height = resized_size((width, height), options["size"])
        check_canvas(image_size, (new_width, new_height))
        cut = options["crop_size"]
        # From pixels of the resized canvas to pixels of the original.
        across, down = width / new_width, height / new_height
        left += crop_offset(new_width, cut["width"]) * across
        top += crop_offset(new_height, cut["height"]) * down
        patch = options["patch_size"]
        cols, rows = cut["width"] // patch, cut["height"] // patch
        box = (left, top, left + cols * patch * across, top + rows * patch * down)
        return PatchMap.grid(image_size, rows=rows, cols=cols, box=box, views=views)

    def processor_arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {key: options[key] for key in ("size", "crop_size", "do_center_crop", "do_pad")}

    def checkpoint_image_options(self, processor: Any, config: PreTrainedConfig) -> dict[str, Any]:
        return {
            "size": plain_size(processor.size),
            "crop_size": plain_size(processor.crop_size),
            "do_center_crop": bool(processor.do_center_crop),
            "do_pad": bool(processor.do_pad),
            "patch_size": config.vision_config.patch_size,
        }

    def tiny_image_options(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "size": sizes["image_size"],
            "crop_size": sizes["image_size"],
            "patch_size": sizes["patch_size"],
        }

    def check_fit(self, options: Mapping[str, Any], config: PreTrainedConfig) -> None:
        vision = config.vision_config
        side = {"height": vision.image_size, "width": vision.image_size}
        if options["crop_size"] != side or options["patch_size"] != vision.patch_size:
            raise ValueError(
                f"the vision tower takes {vision.image_size}x{vision.image_size} pixels in patches of "
                f"{vision.patch_size}, but the image options give crop_size={options['crop_size']}, "
                f"patch_size={options['patch_size']}"
            )

    def check_checkpoint(self, config: Mapping[str, Any], weights: str) -> None:
        super().check_checkpoint(config, weights)
        tower = (config.get("vision_config") or {}).get("model_type", self.features[0])
        strategy = config.get("vision_feature_select_strategy", self.features[1])
        if (tower, strategy) != self.features:
            raise ValueError(
                f"{weights}: its vision tower is {tower!r} with features {strategy!r}; {self.name} needs "
                f"{self.features[0]!r} with {self.features[1]!r}, such as {self.hub_id}"
            )

    def blank_image(self, model: PreTrainedModel) -> dict[str, Tensor]:
        config, tower = model.config.vision_config, model.get_submodule(self.parts["vision"][0])
        side = config.image_size
        return {"pixel_values": blank_pixels(tower, 1, config.num_channels, side, side)}

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        from v1lit.backbones.patch_embedding import speed_up_patch_embedding

        speed_up_patch_embedding(model.get_submodule(self.parts["vision"][0]))
        return super().prepare(model)

    def unused_modules(self, model: Any) -> list[nn.Module]:
        tower, layers = model.get_submodule(self.parts["vision"][0]), self.layers(model, "vision")
        used = layers_used(model.config.vision_feature_layer, len(layers))
        behind = ("post_layernorm", "head")
        return [*layers[used:], *(module for name, module in tower.named_children() if name in behind)]

    def vision_work(self, config: PreTrainedConfig, image_inputs: Mapping[str, Tensor]) -> VisionWork:
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        layers = layers_used(config.vision_feature_layer, vision.num_hidden_layers)
        images = len(image_inputs["pixel_values"]) if image_inputs else 0
        return square_work(images, patches, patches, layers, vision.hidden_size)

    def tiny_config(self, tokenizer: PreTrainedTokenizerBase, **sizes: Any) -> PreTrainedConfig:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        full = self.check_sizes(sizes)
        text = LlamaConfig(
            **text_sizes(tokenizer, full, self.chat.stop),
            tie_word_embeddings=full["tie_word_embeddings"],
            bos_token_id=token_id(tokenizer, self.chat.start),
        )
        vision = CLIPVisionConfig(
            **vision_sizes(full),
            projection_dim=full["vision_hidden_size"],
        )
        return LlavaConfig(
            text_config=text,
            vision_config=vision,
            image_token_index=token_id(tokenizer, self.chat.image_token),
            image_seq_length=(full["image_size"] // full["patch_size"]) ** 2,
            # The published -2 would leave one of the few layers unused.
            vision_feature_layer=-1,
            tie_word_embeddings=full["tie_word_embeddings"],
        )


def check_canvas(image_size: Size, canvas: Size) -> None:
    """Raise ValueError for an image so narrow that cutting or padding it would fill the memory."""
    if canvas[0] * canvas[1] > MAX_CANVAS:
        raise ValueError(
            f"an image of {image_size[0]}x{image_size[1]} pixels is too narrow: it would take a canvas of "
            f"{canvas[0]}x{canvas[1]}, more than {MAX_CANVAS} pixels"
        )


def resized_size(image_size: Size, size: Mapping[str, int]) -> Size:
    """Size after the resize: the shorter side or both sides as in `size`; with one side, the aspect is kept.

    Source: transformers, image_transforms.py, `get_resize_output_image_size`.
    """
    if "shortest_edge" not in size:
        return size["width"], size["height"]
    width, height = image_size
    short, edge = min(width, height), size["shortest_edge"]
    long = int(edge * max(width, height) / short)
    return (edge, long) if width <= height else (long, edge)


def crop_offset(length: int, cut: int) -> int:
    """Where the middle `cut` pixels of `length` begin; negative where the cut is padded to its size.

    Source: transformers, image_transforms.py, `center_crop`.
    """
    return -((cut - length) // 2) if cut > length else (length - cut) // 2
