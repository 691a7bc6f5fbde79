"""LLaVA-OneVision: LLaVA-NeXT with SigLIP and more tiles, of which one of several images has none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

from v1lit.backbones.anyres import base_map
from v1lit.backbones.image_options import ImageProcessor
from v1lit.backbones.llava import check_canvas
from v1lit.backbones.llava_next import LlavaNext
from v1lit.backbones.qwen import CHATML
from v1lit.backbones.tiny import SIZES, text_sizes, token_id, vision_sizes
from v1lit.errors import OptionError
from v1lit.grounding.patch_map import PatchMap, Views
from v1lit.grounding.region import Size

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SHRINKING = re.compile(r"anyres_max_([1-9]\d*)")
"""`vision_aspect_ratio`: how many times the tokens of one tile those of all tiles may be, about."""


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: SigLIP at 384 pixels on the whole image and on 1 to 36 tiles, 27x27 tokens each.

    The last 6 pixels of a tile are seen by none of its tokens. Of several images in an example each is one
    view, padded to a square, and a newline.
    """

    name = "llava_onevision"
    model_type = "llava_onevision"
    model_class = "LlavaOnevisionForConditionalGeneration"
    hub_id = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    image_inputs = ("pixel_values", "image_sizes", "batch_num_images")
    # As it was trained. Source: LLaVA-VL/LLaVA-NeXT, llava/conversation.py, `conv_qwen`.
    chat = replace(CHATML, image=("", ""), image_token="<image>", tokens=("<|im_start|>",))
    decoder = "qwen2"
    features = ("siglip_vision_model", "full")
    class_tokens = 0
    processor_class = "LlavaOnevisionImageProcessor"
    image_defaults: ClassVar[Mapping[str, Any]] = {
        "size": {"height": 384, "width": 384},
        "image_grid_pinpoints": [[384 * rows, 384 * cols] for rows, cols in product(range(1, 7), repeat=2)],
        "patch_size": 14,
        "vision_aspect_ratio": "anyres_max_9",
    }
    pixel_defaults: ClassVar[Mapping[str, Any]] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    tiny_sizes: ClassVar[Mapping[str, Any]] = {**SIZES, "image_size": 48, "tiles": 3, "anyres_max": 4}

    def canonical(self, options: Mapping[str, Any]) -> dict[str, Any]:
        full = super().canonical(options)
        if not SHRINKING.fullmatch(str(full["vision_aspect_ratio"])):
            why = "give anyres_max_ and a number, such as anyres_max_9"
            raise OptionError("vision_aspect_ratio", full["vision_aspect_ratio"], why)
        return full

    def most_tokens(self, options: Mapping[str, Any]) -> int | None:
        found = SHRINKING.fullmatch(options["vision_aspect_ratio"])
        assert found is not None, "canonical options"
        cells: int = options["size"]["height"] // options["patch_size"]
        return int(found[1]) * cells**2

    def grid_among(self, image_size: Size, options: Mapping[str, Any], views: Views) -> PatchMap:
        check_canvas(image_size, (max(image_size), max(image_size)))
        base = base_map(image_size, options["size"]["height"], options["patch_size"], views, padded=True)
        return PatchMap.join([base, PatchMap.blank(image_size, 1)])

    def pixels(self, images: list[Image.Image], processor: ImageProcessor, among: int) -> dict[str, Tensor]:
        if among == 1:
            return super().pixels(images, processor, among)
        output = processor.processor(images=[images], return_tensors="pt", **processor.arguments)
        found: dict[str, Tensor] = {name: output[name] for name in self.image_inputs}
        return {**found, "pixel_values": found["pixel_values"].flatten(0, 1)}

    def checkpoint_image_options(self, processor: Any, config: PreTrainedConfig) -> dict[str, Any]:
        own = super().checkpoint_image_options(processor, config)
        return {**own, "vision_aspect_ratio": config.vision_aspect_ratio}

    def tiny_image_options(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        own = super().tiny_image_options(sizes)
        return {**own, "vision_aspect_ratio": f"anyres_max_{sizes['anyres_max']}"}

    def tiny_canvases(self, sizes: Mapping[str, Any]) -> list[list[int]]:
        lengths = [sizes["image_size"] * tiles for tiles in range(1, sizes["tiles"] + 1)]
        return [list(canvas) for canvas in product(lengths, repeat=2)]

    def config_options(self, config: PreTrainedConfig) -> dict[str, Any]:
        own = super().config_options(config)
        return self.canonical({**own, "vision_aspect_ratio": config.vision_aspect_ratio})

    def blank_image(self, model: PreTrainedModel) -> dict[str, Tensor]:
        import torch

        blank = super().blank_image(model)
        return {**blank, "batch_num_images": torch.ones_like(blank["image_sizes"][:, 0])}

    def count_tokens(self, options: Mapping[str, Any], image_inputs: Mapping[str, Tensor]) -> int:
        counts = image_inputs["batch_num_images"].tolist()
        grids = [self.grid if images == 1 else self.grid_among for images in counts for _ in range(images)]
        sizes = image_inputs["image_sizes"].tolist()
        return sum(
            len(grid((width, height), options, "all"))
            for grid, (height, width) in zip(grids, sizes, strict=True)
        )

    def tiny_config(self, tokenizer: PreTrainedTokenizerBase, **sizes: Any) -> PreTrainedConfig:
        from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

        full = self.check_sizes(sizes)
        text = Qwen2Config(
            **text_sizes(tokenizer, full, self.chat.stop),
            tie_word_embeddings=full["tie_word_embeddings"],
            bos_token_id=None,
        )
        return LlavaOnevisionConfig(
            text_config=text,
            vision_config=SiglipVisionConfig(**vision_sizes(full), vision_use_head=False),
            image_token_index=token_id(tokenizer, self.chat.image_token),
            image_grid_pinpoints=self.tiny_canvases(full),
            vision_aspect_ratio=f"anyres_max_{full['anyres_max']}",
            tie_word_embeddings=full["tie_word_embeddings"],
        )
