"""InternVL in the transformers layout (repositories ending in `-hf`): square tiles, then a thumbnail."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from v1lit.backbones.chat import ChatFormat
from v1lit.backbones.contract import Backbone, blank_pixels
from v1lit.backbones.image_options import as_size, check_flag, check_positive, plain_size
from v1lit.backbones.tiny import SIZES, text_sizes, token_id, vision_sizes
from v1lit.backbones.work import VisionWork, layers_used, square_work
from v1lit.errors import OptionError
from v1lit.grounding.patch_map import OVERVIEW, PatchMap, Views
from v1lit.grounding.region import Size

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class InternVL(Backbone):
    """InternVL3: a canvas of 1 to 12 tiles whose aspect is nearest to the image's, 16x16 tokens a tile."""

    name = "internvl"
    model_type = "internvl"
    model_class = "InternVLForConditionalGeneration"
    hub_id = "OpenGVLab/InternVL3-1B-hf"
    image_inputs = ("pixel_values",)
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "language": ("model.language_model", "lm_head"),
    }
    chat = ChatFormat(
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
        image=("<img>", "</img>"),
        image_token="<IMG_CONTEXT>",
        stop="<|im_end|>",
        default_system=None,
        tokens=("<|im_start|>", "<img>", "</img>"),
    )
    processor_class = "GotOcr2ImageProcessor"
    image_defaults: ClassVar[Mapping[str, Any]] = {
        "size": {"height": 448, "width": 448},
        # The image processor's own default is False, but the family's processor and training set it.
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": 12,
        "patch_size": 14,
        "downsample_ratio": 0.5,
    }
    pixel_defaults: ClassVar[Mapping[str, Any]] = {
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    tiny_sizes: ClassVar[Mapping[str, Any]] = {
        **SIZES,
        "image_size": 56,
        "max_patches": 12,
    }

    def canonical(self, options: Mapping[str, Any]) -> dict[str, Any]:
        full = dict(options)
        full["size"] = as_size("size", full["size"])
        check_flag("crop_to_patches", full["crop_to_patches"])
        for key in ("min_patches", "max_patches", "patch_size"):
            check_positive(key, full[key])
        if full["min_patches"] > full["max_patches"]:
            why = f"that is above max_patches={full['max_patches']}"
            raise OptionError("min_patches", full["min_patches"], why)
        merge = 1 / full["downsample_ratio"]
        if merge != round(merge) or any(
            side % (full["patch_size"] * round(merge)) for side in full["size"].values()
        ):
            token = f"patch_size={full['patch_size']} / downsample_ratio={full['downsample_ratio']} pixels"
            raise OptionError("size", full["size"], f"not made of whole tokens of {token}")
        return full

    def grid(self, image_size: Size, options: Mapping[str, Any], views: Views = "all") -> PatchMap:
        width, height = image_size
        tile = options["size"]
        cell = options["patch_size"] * round(1 / options["downsample_ratio"])
        tokens = {"rows": tile["height"] // cell, "cols": tile["width"] // cell, "views": views}
        cols, rows = (1, 1)
        if options["crop_to_patches"]:
            limits = (options["min_patches"], options["max_patches"])
            cols, rows = tile_grid(image_size, (tile["width"], tile["height"]), *limits)
        maps = [
            PatchMap.grid(
                image_size,
                box=(c * width / cols, r * height / rows, (c + 1) * width / cols, (r + 1) * height / rows),
                **tokens,
            )
            for r in range(rows)
            for c in range(cols)
        ]
        if len(maps) > 1:
            maps.append(PatchMap.grid(image_size, view=OVERVIEW, **tokens))
        return PatchMap.join(maps, views=views)

    def processor_arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {key: options[key] for key in ("size", "crop_to_patches", "min_patches", "max_patches")}

    def checkpoint_image_options(self, processor: Any, config: PreTrainedConfig) -> dict[str, Any]:
        return {
            "size": as_size("size", plain_size(processor.size)),
            "min_patches": processor.min_patches,
            "max_patches": processor.max_patches,
            "patch_size": config.vision_config.patch_size[0],
            "downsample_ratio": config.downsample_ratio,
        }

    def tiny_image_options(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "size": sizes["image_size"],
            "patch_size": sizes["patch_size"],
            "max_patches": sizes["max_patches"],
        }

    def check_fit(self, options: Mapping[str, Any], config: PreTrainedConfig) -> None:
        vision = config.vision_config
        chosen = (
            options["size"]["height"],
            options["size"]["width"],
            options["patch_size"],
            options["downsample_ratio"],
        )
        needed = (*vision.image_size, vision.patch_size[0], config.downsample_ratio)
        if chosen != needed:
            raise ValueError(
                "the vision tower takes tiles of (height, width, patch_size, downsample_ratio) = "
                f"{needed}, but the image options give {chosen}"
            )

    def check_checkpoint(self, config: Mapping[str, Any], weights: str) -> None:
        super().check_checkpoint(config, weights)
        strategy = config.get("vision_feature_select_strategy", "default")
        if strategy != "default":
            raise ValueError(
                f"{weights} has vision_feature_select_strategy {strategy!r}, which makes no whole grid; "
                "internvl needs 'default'"
            )

    def blank_image(self, model: PreTrainedModel) -> dict[str, Tensor]:
        config, tower = model.config.vision_config, model.get_submodule(self.parts["vision"][0])
        return {"pixel_values": blank_pixels(tower, 1, config.num_channels, *config.image_size)}

    def explain_foreign(self, config: Mapping[str, Any], weights: str) -> str | None:
        if config.get("model_type") != "internvl_chat":
            return None
        standard = f"{weights}-hf" if not Path(weights).exists() else "OpenGVLab/InternVL3-1B-hf"
        return (
            f"{weights} is an InternVL checkpoint with code of its own (model_type internvl_chat), "
            "which v1lit does not run; the same weights in the transformers layout are named with -hf at the "
            f"end: {standard}"
        )

    def vision_work(self, config: PreTrainedConfig, image_inputs: Mapping[str, Tensor]) -> VisionWork:
        vision = config.vision_config
        (height, width), (patch_height, patch_width) = vision.image_size, vision.patch_size
        patches = (height // patch_height) * (width // patch_width)
        layers = layers_used(config.vision_feature_layer, vision.num_hidden_layers)
        tiles = len(image_inputs["pixel_values"]) if image_inputs else 0
        tokens = round(patches * config.downsample_ratio**2)
        return square_work(tiles, patches, tokens, layers, vision.hidden_size)

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        from v1lit.backbones.patch_embedding import speed_up_patch_embedding

        speed_up_patch_embedding(model.get_submodule(self.parts["vision"][0]))
        return super().prepare(model)

    def tiny_config(self, tokenizer: PreTrainedTokenizerBase, **sizes: Any) -> PreTrainedConfig:
        from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

        full = self.check_sizes(sizes)
        text = Qwen2Config(
            **text_sizes(tokenizer, full, self.chat.stop),
            tie_word_embeddings=full["tie_word_embeddings"],
            bos_token_id=None,
        )
        vision = InternVLVisionConfig(
            **vision_sizes(full),
            attention_bias=True,
            initializer_range=full["initializer_range"],
        )
        return InternVLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=token_id(tokenizer, self.chat.image_token),
            image_seq_length=(full["image_size"] // full["patch_size"] // 2) ** 2,
            tie_word_embeddings=full["tie_word_embeddings"],
        )


def tile_grid(image_size: Size, tile: Size, min_tiles: int, max_tiles: int) -> Size:
    """Columns and rows of tiles: the aspect nearest to the image's.

    Among equal ones a larger canvas wins as long as the image has more than half of its pixels.

    Source: transformers, models/got_ocr2/image_processing_got_ocr2.py, `get_optimal_tiled_canvas`.
    """
    aspect = image_size[0] / image_size[1]
    shapes = [
        (cols, rows)
        for cols in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // cols + 1)
        if cols * rows >= min_tiles
    ]
    best, least = (1, 1), float("inf")
    for cols, rows in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
        error = abs(aspect - cols / rows)
        fills = image_size[0] * image_size[1] > 0.5 * tile[0] * tile[1] * cols * rows
        if error < least or (error == least and fills):
            best, least = (cols, rows), error
    return best
