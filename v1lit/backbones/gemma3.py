"""Gemma 3: SigLIP at 896 pixels, 256 tokens an image, in a decoder most of whose layers see a window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from v1lit.backbones.chat import ChatFormat
from v1lit.backbones.contract import Backbone, blank_pixels
from v1lit.backbones.image_options import as_size, check_flag, check_positive, plain_size
from v1lit.backbones.tiny import SIZES, text_sizes, token_id, vision_sizes
from v1lit.backbones.work import VisionWork
from v1lit.errors import OptionError
from v1lit.grounding.patch_map import OVERVIEW, PatchMap, Views
from v1lit.grounding.region import Size

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

BEGIN, END = "<start_of_image>", "<end_of_image>"
CROPS = (
    "do_pan_and_scan",
    "pan_and_scan_min_crop_size",
    "pan_and_scan_max_num_crops",
    "pan_and_scan_min_ratio_to_activate",
)
"""Options of pan and scan: of a narrow image, parts beside each other are shown too."""


class Gemma3(Backbone):
    """Gemma 3: the image becomes a square, whose 64x64 patches are averaged in cells of 4x4.

    Word embeddings are multiplied by the root of their width on their way into the decoder; those of image
    tokens are not, and nor are copies, which are the same vectors. The tokens of an image see each other in
    both directions, in layers with a window (of at least an image) as in those without. Source: arXiv
    2503.19786; transformers, models/gemma3.
    """

    name = "gemma3"
    model_type = "gemma3"
    model_class = "Gemma3ForConditionalGeneration"
    hub_id = "google/gemma-3-4b-it"
    image_inputs = ("pixel_values",)
    whole_images = True
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "language": ("model.language_model", "lm_head"),
    }
    chat = ChatFormat(
        system=("", "\n\n"),
        user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        assistant=("<start_of_turn>model\n", "<end_of_turn>\n"),
        image=(f"\n\n{BEGIN}", f"{END}\n\n"),
        image_token="<image_soft_token>",
        stop="<end_of_turn>",
        start="<bos>",
        tokens=("<bos>", "<start_of_turn>", BEGIN, END),
        system_in_user=True,
        joins_lines=True,
    )
    processor_class = "Gemma3ImageProcessor"
    image_defaults: ClassVar[Mapping[str, Any]] = {
        "size": {"height": 896, "width": 896},
        # Saved image processors leave these open, and the family's processor sets them so.
        "do_pan_and_scan": False,
        "pan_and_scan_min_crop_size": 256,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
        "patch_size": 14,
        "mm_tokens_per_image": 256,
    }
    pixel_defaults: ClassVar[Mapping[str, Any]] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    tiny_sizes: ClassVar[Mapping[str, Any]] = {
        **SIZES,
        "image_size": 112,
        "image_tokens": 16,
        "window": 24,
        "global_layers": [1],
    }

    # ---- images -------------------------------------------------------------------------------------------

    def canonical(self, options: Mapping[str, Any]) -> dict[str, Any]:
        full = dict(options)
        full["size"] = as_size("size", full["size"])
        check_flag("do_pan_and_scan", full["do_pan_and_scan"])
        for key in (*CROPS[1:3], "patch_size", "mm_tokens_per_image"):
            check_positive(key, full[key])
        ratio = full[CROPS[3]]
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not ratio >= 1:
            raise OptionError(CROPS[3], ratio, "it must be a number from 1 on, long side over short")
        side, tokens = full["size"]["height"], full["mm_tokens_per_image"]
        if side != full["size"]["width"]:
            raise OptionError("size", full["size"], "the vision tower takes squares")
        if math.isqrt(tokens) ** 2 != tokens or side % (full["patch_size"] * math.isqrt(tokens)):
            why = (
                f"of size={side} in patches of {full['patch_size']}, they make no square of whole cells of "
                "patches"
            )
            raise OptionError("mm_tokens_per_image", tokens, why)
        return full

    def grid(self, image_size: Size, options: Mapping[str, Any], views: Views = "all") -> PatchMap:
        side = math.isqrt(options["mm_tokens_per_image"])
        crops = crop_boxes(image_size, *(options[key] for key in CROPS[1:])) if options[CROPS[0]] else []
        if not crops:
            return PatchMap.grid(image_size, rows=side, cols=side, views=views)
        maps = [PatchMap.grid(image_size, rows=side, cols=side, view=OVERVIEW)]
        maps += [PatchMap.grid(image_size, rows=side, cols=side, box=box) for box in crops]
        return PatchMap.join(maps, views=views)

    def image_pieces(self, patch_map: PatchMap) -> list[str | int]:
        before, after = self.chat.image
        tokens, shown = len(patch_map), patch_map.token_views
        each = int((shown == OVERVIEW).sum()) or tokens
        one: list[str | int] = [before, each, after]
        if each == tokens:
            return one
        pieces: list[str | int] = [f"Here is the original image {before}", each]
        words = f"{after} and here are some crops to help you see better {before}"
        for _ in range(tokens // each - 1):
            pieces += [words, each]
            words = f"{after} {before}"
        return [*pieces, after]

    def processor_arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {key: options[key] for key in ("size", *CROPS)}

    def checkpoint_image_options(self, processor: Any, config: PreTrainedConfig) -> dict[str, Any]:
        stated = {key: getattr(processor, key, None) for key in CROPS}
        return {
            "size": plain_size(processor.size),
            **{key: value for key, value in stated.items() if value is not None},
            "patch_size": config.vision_config.patch_size,
            "mm_tokens_per_image": config.mm_tokens_per_image,
        }

    def tiny_image_options(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "size": sizes["image_size"],
            "patch_size": sizes["patch_size"],
            "mm_tokens_per_image": sizes["image_tokens"],
        }

    def check_fit(self, options: Mapping[str, Any], config: PreTrainedConfig) -> None:
        vision, text = config.vision_config, config.get_text_config()
        chosen = (options["size"]["height"], options["patch_size"], options["mm_tokens_per_image"])
        needed = (vision.image_size, vision.patch_size, config.mm_tokens_per_image)
        if chosen != needed:
            raise ValueError(
                f"the model takes squares of (size, patch_size, mm_tokens_per_image) = {needed}, but the "
                f"image options give {chosen}"
            )
        if text.sliding_window < config.mm_tokens_per_image:
            raise ValueError(
                f"config.json has sliding_window {text.sliding_window}, which is less than the "
                f"{config.mm_tokens_per_image} tokens of an image; what its tokens see of each other then "
                "differs between versions of transformers"
            )

    # ---- model --------------------------------------------------------------------------------------------

    def check_checkpoint(self, config: Mapping[str, Any], weights: str) -> None:
        super().check_checkpoint(config, weights)
        text = config.get("text_config") or {}
        for key in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"):
            if text.get(key):
                raise ValueError(
                    f"{weights} has {key} {text[key]!r} in text_config, which {self.model_class} does not "
                    f"compute; use a checkpoint such as {self.hub_id}"
                )
        tower = (config.get("vision_config") or {}).get("model_type", "siglip_vision_model")
        if tower != "siglip_vision_model":
            raise ValueError(
                f"{weights} has the vision tower {tower!r}; gemma3 needs 'siglip_vision_model', as that of "
                f"{self.hub_id}"
            )

    def explain_foreign(self, config: Mapping[str, Any], weights: str) -> str | None:
        if config.get("model_type") != "gemma3_text":
            return None
        return (
            f"{weights} is a Gemma 3 without a vision tower (model_type gemma3_text), which sees no images; "
            f"use one of 4B, 12B or 27B such as {self.hub_id}"
        )

    def blank_image(self, model: PreTrainedModel) -> dict[str, Tensor]:
        config, tower = model.config.vision_config, model.get_submodule(self.parts["vision"][0])
        return {"pixel_values": blank_pixels(tower, 1, config.num_channels, *[config.image_size] * 2)}

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        from v1lit.backbones.patch_embedding import speed_up_patch_embedding

        speed_up_patch_embedding(model.get_submodule(self.parts["vision"][0]))
        return super().prepare(model)

    def matrices(self, model: Any) -> list[nn.Parameter]:
        return [model.model.multi_modal_projector.mm_input_projection_weight]

    def unused_modules(self, model: PreTrainedModel) -> list[nn.Module]:
        tower = model.get_submodule(self.parts["vision"][0])
        # Pools the whole image into one vector; the published ones have none.
        return [module for name, module in tower.named_modules() if name.rpartition(".")[2] == "head"]

    def vision_work(self, config: PreTrainedConfig, image_inputs: Mapping[str, Tensor]) -> VisionWork:
        vision, tokens = config.vision_config, config.mm_tokens_per_image
        patches = (vision.image_size // vision.patch_size) ** 2
        images = len(image_inputs["pixel_values"]) if image_inputs else 0
        attention = vision.num_hidden_layers * patches**2 * vision.hidden_size
        return VisionWork(
            patches=images * patches,
            tokens=images * patches,
            attention=images * attention,
            image_tokens=images * tokens,
            ahead=images * tokens**2,
        )

    def check_sizes(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        full = super().check_sizes(sizes)
        if check_positive("window", full["window"]) < full["image_tokens"]:
            why = f"an image has image_tokens={full['image_tokens']}, which must fit"
            raise OptionError("window", full["window"], why)
        if not set(full["global_layers"]) <= set(range(full["layers"])):
            raise OptionError(
                "global_layers", full["global_layers"], f"there are layers={full['layers']}, from 0"
            )
        return full

    def tiny_config(self, tokenizer: PreTrainedTokenizerBase, **sizes: Any) -> PreTrainedConfig:
        from transformers import Gemma3Config, Gemma3TextConfig, SiglipVisionConfig

        full = self.check_sizes(sizes)
        head = full["hidden_size"] // full["heads"]
        text = Gemma3TextConfig(
            **text_sizes(tokenizer, full, self.chat.stop),
            head_dim=head,
            query_pre_attn_scalar=head,
            sliding_window=full["window"],
            layer_types=[
                "full_attention" if layer in full["global_layers"] else "sliding_attention"
                for layer in range(full["layers"])
            ],
            tie_word_embeddings=full["tie_word_embeddings"],
            bos_token_id=token_id(tokenizer, self.chat.start),
        )
        vision = SiglipVisionConfig(**vision_sizes(full), vision_use_head=False)
        return Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=full["image_tokens"],
            image_token_index=token_id(tokenizer, self.chat.image_token),
            boi_token_index=token_id(tokenizer, BEGIN),
            eoi_token_index=token_id(tokenizer, END),
            initializer_range=full["initializer_range"],
            tie_word_embeddings=full["tie_word_embeddings"],
        )


def crop_boxes(
    image_size: Size, min_crop_size: int, max_num_crops: int, min_ratio_to_activate: float
) -> list[tuple[float, float, float, float]]:
    """The parts of an image that pan and scan shows beside the whole, in order; none for one nearly square.

    Raises ValueError where the last one would have no pixels. Source: transformers,
    models/gemma3/image_processing_gemma3.py, `pan_and_scan_batched`.
    """
    width, height = image_size
    long, short = max(width, height), min(width, height)
    if long / short < min_ratio_to_activate:
        return []
    crops = min(math.floor(long / min_crop_size), math.floor(long / short + 0.5))
    crops = min(max_num_crops, max(2, crops))
    each = math.ceil(long / crops)
    if min(each, short) < min_crop_size:
        return []
    if each * (crops - 1) >= long:
        raise ValueError(f"an image of {width}x{height} pixels cannot be cut into {crops} crops of {each}")
    edges = [(float(each * crop), float(min(each * (crop + 1), long))) for crop in range(crops)]
    if width >= height:
        return [(start, 0.0, stop, float(height)) for start, stop in edges]
    return [(0.0, start, float(width), stop) for start, stop in edges]
