"""Qwen2-VL and Qwen2.5-VL: images of any size, resized to whole patches, 2x2 patches to a token."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from v1lit.backbones.chat import ChatFormat
from v1lit.backbones.contract import Backbone, blank_pixels
from v1lit.backbones.image_options import check_positive, plain_size
from v1lit.backbones.tiny import SIZES, text_sizes, token_id
from v1lit.backbones.work import VisionWork
from v1lit.errors import OptionError
from v1lit.grounding.patch_map import PatchMap, Views
from v1lit.grounding.region import Size

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MAX_ASPECT = 200
"""Longer side over shorter side of an image that its processor takes."""
PATCHES = ("patch_size", "temporal_patch_size", "merge_size")
"""Image options that the vision tower decides."""

CHATML = ChatFormat(
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
    image=("<|vision_start|>", "<|vision_end|>"),
    image_token="<|image_pad|>",
    stop="<|im_end|>",
    default_system="You are a helpful assistant.",
    tokens=("<|im_start|>", "<|vision_start|>", "<|vision_end|>"),
)


class QwenVL(Backbone):
    """What Qwen2-VL and Qwen2.5-VL share, which is all but the vision tower."""

    image_inputs = ("pixel_values", "image_grid_thw")
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("model.visual",),
        "projector": ("model.visual.merger",),
        "language": ("model.language_model", "lm_head"),
    }
    chat = CHATML
    processor_class = "Qwen2VLImageProcessor"
    processor_aliases = ("Qwen2_5_VLImageProcessor",)
    image_defaults: ClassVar[Mapping[str, Any]] = {
        "min_pixels": 56 * 56,
        "max_pixels": 28 * 28 * 16384,
        "size": None,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    pixel_defaults: ClassVar[Mapping[str, Any]] = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    tiny_sizes: ClassVar[Mapping[str, Any]] = {
        **SIZES,
        "temporal_patch_size": 2,
        "min_pixels": 56 * 56,
        "max_pixels": 448 * 448,
    }

    def canonical(self, options: Mapping[str, Any]) -> dict[str, Any]:
        # transformers also writes the limits as a size: the "edges" are numbers of pixels, not sides.
        full = dict(options)
        size = full.pop("size", None)
        if size is not None:
            unknown = set(size) - {"shortest_edge", "longest_edge"}
            if unknown:
                raise OptionError("size", size, "give shortest_edge and longest_edge, in pixels")
            full["min_pixels"] = size.get("shortest_edge", full["min_pixels"])
            full["max_pixels"] = size.get("longest_edge", full["max_pixels"])
        for key, value in full.items():
            check_positive(key, value)
        if full["min_pixels"] > full["max_pixels"]:
            why = f"that is above max_pixels={full['max_pixels']}"
            raise OptionError("min_pixels", full["min_pixels"], why)
        return full

    def grid(self, image_size: Size, options: Mapping[str, Any], views: Views = "all") -> PatchMap:
        cell = options["patch_size"] * options["merge_size"]
        width, height = resized_size(image_size, cell, options["min_pixels"], options["max_pixels"])
        return PatchMap.grid(image_size, rows=height // cell, cols=width // cell, views=views)

    def processor_arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "size": {"shortest_edge": options["min_pixels"], "longest_edge": options["max_pixels"]},
            **{name: options[name] for name in PATCHES},
        }

    def checkpoint_image_options(self, processor: Any, config: PreTrainedConfig) -> dict[str, Any]:
        size = plain_size(processor.size)
        if set(size) != {"shortest_edge", "longest_edge"}:
            raise ValueError(f"size must have shortest_edge and longest_edge (in pixels), not {sorted(size)}")
        return {
            "min_pixels": size["shortest_edge"],
            "max_pixels": size["longest_edge"],
            **{name: getattr(processor, name) for name in PATCHES},
        }

    def tiny_image_options(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        names = ("patch_size", "temporal_patch_size", "min_pixels", "max_pixels")
        return {name: sizes[name] for name in names}

    def check_fit(self, options: Mapping[str, Any], config: PreTrainedConfig) -> None:
        vision = config.vision_config
        needed = {
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "merge_size": vision.spatial_merge_size,
        }
        chosen = {key: options[key] for key in needed}
        if chosen != needed:
            raise ValueError(f"the vision tower needs {needed}, but the image options give {chosen}")
        text = config.get_text_config()
        section = text.rope_parameters.get("mrope_section")
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        rotated = int(head * text.rope_parameters.get("partial_rotary_factor", 1.0))
        if section is not None and 2 * sum(section) != rotated:
            part = "" if rotated == head else f"the {rotated} rotated numbers of "
            raise ValueError(
                f"mrope_section {section} of config.json must add up to half of {part}a head of {head}"
            )

    def encode_images(self, model: PreTrainedModel, **image_inputs: Tensor) -> Tensor:
        from v1lit.backbones.qwen_vision import encode

        return encode(model.get_submodule(self.parts["vision"][0]), **image_inputs)

    def blank_image(self, model: PreTrainedModel) -> dict[str, Tensor]:
        import torch

        config, tower = model.config.vision_config, self.parts["vision"][0]
        merge, frames = config.spatial_merge_size, config.temporal_patch_size
        values = config.in_channels * frames * config.patch_size**2
        pixels = blank_pixels(model.get_submodule(tower), merge * merge, values)
        grid = torch.tensor([[1, merge, merge]], device=pixels.device)
        return {"pixel_values": pixels, "image_grid_thw": grid}

    def positions(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **image_inputs: Tensor,
    ) -> Tensor:
        """Time, row and column of every token, `[3, batch, tokens]`; padding has position 0."""
        # Without token types the published code falls back to plain positions and says nothing.
        token_types = (input_ids == model.config.image_token_id).int()
        position_ids, _ = model.model.get_rope_index(
            input_ids,
            mm_token_type_ids=token_types,
            image_grid_thw=image_inputs.get("image_grid_thw"),
            attention_mask=attention_mask,
        )
        return (
            position_ids.masked_fill(attention_mask == 0, 0) if attention_mask is not None else position_ids
        )

    def vision_work(self, config: PreTrainedConfig, image_inputs: Mapping[str, Tensor]) -> VisionWork:
        vision = config.vision_config
        grids = image_inputs["image_grid_thw"].tolist() if image_inputs else []
        patches = sum(frames * rows * columns for frames, rows, columns in grids)
        attention = sum(frames * self.frame_attention(vision, *frame) for frames, *frame in grids)
        return VisionWork(patches, patches, attention, patches // vision.spatial_merge_size**2)

    @abstractmethod
    def frame_attention(self, vision: Any, rows: int, columns: int) -> int:
        """Width times pairs of patches that see each other in a frame, summed over the layers."""

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        from v1lit.backbones.qwen_vision import speed_up_vision

        return speed_up_vision(super().prepare(model))

    def tiny_config(self, tokenizer: PreTrainedTokenizerBase, **sizes: Any) -> PreTrainedConfig:
        import transformers

        full = self.check_sizes(sizes)
        config_class = getattr(transformers, self.model_class).config_class
        config: PreTrainedConfig = config_class(
            text_config=self.tiny_text_config(tokenizer, full),
            vision_config={
                "depth": full["vision_layers"],
                "num_heads": full["vision_heads"],
                "patch_size": full["patch_size"],
                "temporal_patch_size": full["temporal_patch_size"],
                "initializer_range": full["initializer_range"],
                **self.tiny_vision_config(full),
            },
            image_token_id=token_id(tokenizer, "<|image_pad|>"),
            video_token_id=token_id(tokenizer, "<|video_pad|>"),
            vision_start_token_id=token_id(tokenizer, "<|vision_start|>"),
            vision_end_token_id=token_id(tokenizer, "<|vision_end|>"),
            tie_word_embeddings=full["tie_word_embeddings"],
        )
        return config

    def tiny_text_config(
        self, tokenizer: PreTrainedTokenizerBase, sizes: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The language model's part of a tiny config. Half a head is split over time, row and column."""
        half = sizes["hidden_size"] // sizes["heads"] // 2
        spatial = 3 * half // 8
        return {
            **text_sizes(tokenizer, sizes, CHATML.stop),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [half - 2 * spatial, spatial, spatial],
            },
            "bos_token_id": None,
        }

    @abstractmethod
    def tiny_vision_config(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """What the tiny vision tower's config has of this family alone, from all sizes."""


class Qwen2VL(QwenVL):
    """Qwen2-VL: every patch of an image attends to every other."""

    name = "qwen2_vl"
    model_type = "qwen2_vl"
    model_class = "Qwen2VLForConditionalGeneration"
    hub_id = "Qwen/Qwen2-VL-7B-Instruct"

    def tiny_vision_config(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        width = sizes["vision_hidden_size"]
        if sizes["vision_intermediate_size"] % width:
            given, why = sizes["vision_intermediate_size"], f"give a multiple of vision_hidden_size={width}"
            raise OptionError("vision_intermediate_size", given, why, "model.backbone.tiny")
        return {
            "embed_dim": width,
            "hidden_size": sizes["hidden_size"],
            "mlp_ratio": sizes["vision_intermediate_size"] // width,
        }

    def frame_attention(self, vision: Any, rows: int, columns: int) -> int:
        return int(vision.embed_dim * vision.depth * (rows * columns) ** 2)


class Qwen25VL(QwenVL):
    """Qwen2.5-VL: most vision layers attend inside windows, some over the whole image."""

    name = "qwen2_5_vl"
    model_type = "qwen2_5_vl"
    model_class = "Qwen2_5_VLForConditionalGeneration"
    hub_id = "Qwen/Qwen2.5-VL-7B-Instruct"
    tiny_sizes: ClassVar[Mapping[str, Any]] = {
        **QwenVL.tiny_sizes,
        "window_size": 112,
        "full_attention_layers": [1],
    }

    def tiny_vision_config(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "hidden_size": sizes["vision_hidden_size"],
            "intermediate_size": sizes["vision_intermediate_size"],
            "out_hidden_size": sizes["hidden_size"],
            "window_size": sizes["window_size"],
            "fullatt_block_indexes": list(sizes["full_attention_layers"]),
        }

    def frame_attention(self, vision: Any, rows: int, columns: int) -> int:
        merge, full = vision.spatial_merge_size, len(vision.fullatt_block_indexes)
        window = vision.window_size // merge // vision.patch_size * merge
        windows = squared_pieces(rows, window) * squared_pieces(columns, window)
        return int(vision.hidden_size * (full * (rows * columns) ** 2 + (vision.depth - full) * windows))


def squared_pieces(side: int, window: int) -> int:
    """Sum of squares of the pieces into which windows cut a side."""
    return side // window * window**2 + (side % window) ** 2


def resized_size(image_size: Size, cell: int, min_pixels: int, max_pixels: int) -> Size:
    """Size to which the processor resizes: whole cells, aspect nearly kept, area within the limits.

    Source: transformers, models/qwen2_vl/image_processing_qwen2_vl.py, `smart_resize`.
    """
    width, height = image_size
    if min(image_size) < 1:
        raise ValueError(f"an image of {width}x{height} has no pixels")
    if max(image_size) > MAX_ASPECT * min(image_size):
        raise ValueError(
            f"an image of {width}x{height} pixels is too narrow: "
            f"one side is more than {MAX_ASPECT} times the other"
        )
    new_width, new_height = round(width / cell) * cell, round(height / cell) * cell
    if new_width * new_height > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        new_width = max(cell, math.floor(width / shrink / cell) * cell)
        new_height = max(cell, math.floor(height / shrink / cell) * cell)
    elif new_width * new_height < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        new_width, new_height = math.ceil(width * grow / cell) * cell, math.ceil(height * grow / cell) * cell
    return new_width, new_height
