"""LLaVA-NeXT (LLaVA-1.6): a base view of the whole image, then tiles of a canvas in the image's aspect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from v1lit.backbones.anyres import base_map, best_canvas, tiles_map
from v1lit.backbones.contract import ChatFormat, VisionWork, blank_pixels, layers_used, square_work
from v1lit.backbones.image_options import ImageProcessor, as_size, check_positive, plain_size
from v1lit.backbones.llava import Llava
from v1lit.backbones.tiny import SIZES, text_sizes, token_id, vision_sizes
from v1lit.errors import OptionError
from v1lit.grounding.patch_map import PatchMap, Views
from v1lit.grounding.region import Size

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TILED = ("anyres", "spatial_unpad")
"""Beginnings of `image_aspect_ratio` and `mm_patch_merge_type` in configs of the original layout."""


class LlavaNext(Llava):
    """LLaVA-NeXT: CLIP at 336 pixels on the whole image and on 2 to 4 tiles, 24x24 tokens each.

    Tokens of padding are cut off, and every row of the tiles' tokens ends with a newline, which sees nothing.
    """

    name = "llava_next"
    model_type = "llava_next"
    model_class = "LlavaNextForConditionalGeneration"
    hub_id = "llava-hf/llava-v1.6-mistral-7b-hf"
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "image_sizes")
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **Llava.parts,
        "projector": ("model.multi_modal_projector", "model.image_newline"),
    }
    # Source: the chat template of llava-hf/llava-v1.6-mistral-7b-hf.
    chat = ChatFormat(
        system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        user=("[INST] ", ""),
        assistant=(" [/INST] ", "</s>"),
        image=("", ""),
        image_token="<image>",
        stop="</s>",
        start="<s>",
        tokens=("<s>",),
    )
    decoder: ClassVar[str] = "mistral"
    """`model_type` of the text decoder that was trained with `chat`: other decoders know other marks."""
    originals: ClassVar[tuple[str, ...]] = ("LlavaLlamaForCausalLM", "LlavaMistralForCausalLM")
    """Classes in `config.json` of the same weights in the original layout."""
    class_tokens: ClassVar[int] = 1
    """Rows of the tower's layers beside the patches of a view."""
    processor_class = "LlavaNextImageProcessor"
    processor_aliases = ()
    harmless = ("do_pad", "do_center_crop", "crop_size", "aspect_ratio_setting")
    image_defaults: ClassVar[Mapping[str, Any]] = {
        "size": {"height": 336, "width": 336},
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        "patch_size": 14,
    }
    tiny_sizes: ClassVar[Mapping[str, Any]] = {**SIZES, "image_size": 56}

    def canonical(self, options: Mapping[str, Any]) -> dict[str, Any]:
        full = dict(options)
        size = as_size("size", full["size"], "shortest_edge")
        side = next(iter(size.values()))
        if any(length != side for length in size.values()):
            raise OptionError("size", full["size"], "a tile is a square; give one number")
        full["size"] = {"height": side, "width": side}
        check_positive("patch_size", full["patch_size"])
        if full["patch_size"] > side:
            raise OptionError("patch_size", full["patch_size"], f"a tile has {side} pixels a side")
        full["image_grid_pinpoints"] = _canvases(full["image_grid_pinpoints"], side)
        return full

    def grid(self, image_size: Size, options: Mapping[str, Any], views: Views = "all") -> PatchMap:
        side, patch = options["size"]["height"], options["patch_size"]
        canvas = best_canvas(image_size, options["image_grid_pinpoints"])
        tiles = tiles_map(image_size, canvas, side, patch, views, self.most_tokens(options))
        return PatchMap.join([base_map(image_size, side, patch, views), tiles])

    def most_tokens(self, options: Mapping[str, Any]) -> int | None:
        """How many tokens the tiles of an image may have before they are shrunk; None for any number."""
        return None

    def pixels(self, images: list[Image.Image], processor: ImageProcessor, among: int) -> dict[str, Tensor]:
        """Views of all images one after another, `[views, channels, side, side]`, and the images' sizes."""
        import torch

        # One by one: together, those of fewer tiles are padded.
        made = [
            processor.processor(images=[image], return_tensors="pt", **processor.arguments)
            for image in images
        ]
        joined = {name: torch.cat([output[name] for output in made]) for name in self.image_inputs[1:]}
        return {"pixel_values": torch.cat([output["pixel_values"][0] for output in made]), **joined}

    def processor_arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        own = {key: options[key] for key in ("size", "image_grid_pinpoints")}
        return {**own, "crop_size": options["size"]}

    def checkpoint_image_options(self, processor: Any, config: PreTrainedConfig) -> dict[str, Any]:
        options = {
            "size": plain_size(processor.size),
            "image_grid_pinpoints": processor.image_grid_pinpoints,
            "patch_size": config.vision_config.patch_size,
        }
        cut = plain_size(processor.crop_size or {})
        if cut and set(cut.values()) != set(options["size"].values()):
            raise ValueError(f"crop_size is {cut}, but tiles are of the size {options['size']}")
        return options

    def tiny_image_options(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "size": sizes["image_size"],
            "image_grid_pinpoints": self.tiny_canvases(sizes),
            "patch_size": sizes["patch_size"],
        }

    def tiny_canvases(self, sizes: Mapping[str, Any]) -> list[list[int]]:
        """`[height, width]` of the tiny version's canvases: the published ones, in tiles of its own."""
        published, side = self.image_defaults, self.image_defaults["size"]["height"]
        return [
            [length // side * sizes["image_size"] for length in canvas]
            for canvas in published["image_grid_pinpoints"]
        ]

    def config_options(self, config: PreTrainedConfig) -> dict[str, Any]:
        """The image options with which the model computes, in canonical form."""
        vision = config.vision_config
        options = {
            "size": vision.image_size,
            "image_grid_pinpoints": config.image_grid_pinpoints,
            "patch_size": vision.patch_size,
        }
        return self.canonical({**self.image_defaults, **options})

    def check_fit(self, options: Mapping[str, Any], config: PreTrainedConfig) -> None:
        wanted = self.config_options(config)
        wrong = [key for key in wanted if options[key] != wanted[key]]
        if wrong:
            raise ValueError(
                f"the model's config says {wrong[0]}={wanted[wrong[0]]}, but the image options give "
                f"{wrong[0]}={options[wrong[0]]}; images have fewer tiles with a lower max_side"
            )

    def check_checkpoint(self, config: Mapping[str, Any], weights: str) -> None:
        super().check_checkpoint(config, weights)
        decoder = (config.get("text_config") or {}).get("model_type", self.decoder)
        if decoder != self.decoder:
            raise ValueError(
                f"{weights} has the decoder {decoder!r}, but {self.name} writes conversations for "
                f"{self.decoder!r}, as in {self.hub_id}\n"
                "register a variant with its decoder and chat format, see docs/backbones.md"
            )

    def explain_foreign(self, config: Mapping[str, Any], weights: str) -> str | None:
        known = set(self.originals) & set(config.get("architectures") or ())
        tiled = [str(config.get(key)) for key in ("image_aspect_ratio", "mm_patch_merge_type")]
        if not known or not all(map(str.startswith, tiled, TILED)):
            return None
        standard = self.hub_id if Path(weights).exists() else f"llava-hf/{weights.rpartition('/')[2]}-hf"
        return (
            f"{weights} is a checkpoint in the layout of the original code ({known.pop()}), which v1lit does "
            f"not read; the same weights in the transformers layout, for {self.name}: {standard}"
        )

    def blank_image(self, model: PreTrainedModel) -> dict[str, Tensor]:
        import torch

        vision = model.config.vision_config
        tower = model.get_submodule(self.parts["vision"][0])
        canvas = min(model.config.image_grid_pinpoints, key=lambda canvas: canvas[0] * canvas[1])
        side = vision.image_size
        views = 1 + (canvas[0] // side) * (canvas[1] // side)
        pixels = blank_pixels(tower, views, vision.num_channels, side, side)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([canvas], device=pixels.device)}

    def vision_work(self, config: PreTrainedConfig, image_inputs: Mapping[str, Tensor]) -> VisionWork:
        if not image_inputs:
            return VisionWork()
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        layers = layers_used(config.vision_feature_layer, vision.num_hidden_layers)
        views = len(image_inputs["pixel_values"])
        tokens = self.count_tokens(self.config_options(config), image_inputs)
        work = square_work(views, patches, patches, layers, vision.hidden_size, self.class_tokens)
        return work._replace(image_tokens=tokens, surplus=work.image_tokens - tokens)

    def count_tokens(self, options: Mapping[str, Any], image_inputs: Mapping[str, Tensor]) -> int:
        """Image tokens of a batch, newlines included."""
        sizes = image_inputs["image_sizes"].tolist()
        return sum(len(self.grid((width, height), options)) for height, width in sizes)

    def tiny_config(self, tokenizer: PreTrainedTokenizerBase, **sizes: Any) -> PreTrainedConfig:
        from transformers import AutoConfig, CLIPVisionConfig, LlavaNextConfig

        full = self.check_sizes(sizes)
        text = AutoConfig.for_model(
            self.decoder,
            **text_sizes(tokenizer, full, self.chat.stop),
            tie_word_embeddings=full["tie_word_embeddings"],
            bos_token_id=token_id(tokenizer, self.chat.start),
            sliding_window=None,
        )
        vision = CLIPVisionConfig(**vision_sizes(full), projection_dim=full["vision_hidden_size"])
        return LlavaNextConfig(
            text_config=text,
            vision_config=vision,
            image_token_index=token_id(tokenizer, self.chat.image_token),
            image_seq_length=(full["image_size"] // full["patch_size"]) ** 2,
            image_grid_pinpoints=self.tiny_canvases(full),
            # The published -2 would leave one of the few layers unused.
            vision_feature_layer=-1,
            tie_word_embeddings=full["tie_word_embeddings"],
        )


def _canvases(given: Any, side: int) -> list[list[int]]:
    """`[height, width]` of every canvas. Raises OptionError unless all are made of whole tiles."""
    key, why = "image_grid_pinpoints", f"give a list of [height, width], each a multiple of size={side}"
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise OptionError(key, given, why)
    for canvas in given:
        whole = isinstance(canvas, Sequence) and not isinstance(canvas, str) and len(canvas) == 2
        if not whole or any(check_positive(key, length) % side for length in canvas):
            raise OptionError(key, given, why)
    return [[int(length) for length in canvas] for canvas in given]
