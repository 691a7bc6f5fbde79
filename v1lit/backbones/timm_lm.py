"""The family made of parts: any vision tower of timm, a projector, any causal language model of transformers.

What an image becomes follows from tower and projector, so nothing of it is written down twice: the options
below that the model decides are read from it (`v1lit.backbones.timm_tower`), and its checkpoints are made by
`v1lit assemble`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from v1lit.backbones.chat import ChatFormat
from v1lit.backbones.contract import Backbone
from v1lit.backbones.image_options import as_size, check_positive, plain_size
from v1lit.backbones.timm_sizes import canvas_grid, drawn_size, kept_grid
from v1lit.backbones.tiny import SIZES, text_sizes, token_id
from v1lit.backbones.work import VisionWork
from v1lit.errors import OptionError, name_allowed, named
from v1lit.grounding.patch_map import PatchMap, Views
from v1lit.grounding.region import Size

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FITS = ("squash", "pad", "keep")
"""An image fills the size, keeps its aspect inside of it, or keeps its aspect and has no size (NaFlex)."""
ROUNDINGS = ("exact", "floor", "ceil")
DECIDED = ("patch_size", "rounding", "merge", "tokens")
"""Image options that the model decides: of the tower the first two, of the projector the others."""
OF_SIZES = "vit_base_patch16_siglip_224.v2_webli"
"""The tower of the tiny version, which takes its sizes from those that all families share."""


class TimmLM(Backbone):
    """A timm tower, a projector and a causal language model; conversations are written in ChatML.

    Language models that were trained on other marks are given as a subclass with another `chat`.
    """

    name = "timm_lm"
    model_type = "timm_lm"
    model_class = "v1lit.backbones.timm_model:TimmForConditionalGeneration"
    hub_id = "made-by-v1lit-assemble"
    image_inputs = ("pixel_values", "image_grid_hw")
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("vision_tower",),
        "projector": ("projector",),
        "language": ("language_model",),
    }
    chat = ChatFormat(
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
        image=("", ""),
        image_token="<|image_pad|>",
        stop="<|im_end|>",
        tokens=("<|im_start|>",),
    )
    processor_class = "v1lit.backbones.timm_images:TimmImageProcessor"
    image_defaults: ClassVar[Mapping[str, Any]] = {
        "size": {"height": 384, "width": 384},
        "fit": "squash",
        "max_tokens": 256,
        "patch_size": 16,
        "rounding": "exact",
        "merge": 1,
        "tokens": None,
    }
    pixel_defaults: ClassVar[Mapping[str, Any]] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    tiny_sizes: ClassVar[Mapping[str, Any]] = {
        **SIZES,
        "image_size": 84,
        "tower": OF_SIZES,
        "tower_arguments": None,
        "feature_layers": [-1],
        "projector": "mlp",
        "projector_scale": 2,
        "projector_tokens": 16,
        "language": "qwen3",
    }

    # ---- images -------------------------------------------------------------------------------------------

    def canonical(self, options: Mapping[str, Any]) -> dict[str, Any]:
        full = dict(options)
        for key, allowed in (("fit", FITS), ("rounding", ROUNDINGS)):
            if full[key] not in allowed:
                raise OptionError(key, full[key], name_allowed(full[key], allowed))
        for key in ("max_tokens", "patch_size", "merge"):
            check_positive(key, full[key])
        if full["tokens"] is not None:
            check_positive("tokens", full["tokens"])
        full["size"] = as_size("size", full["size"])
        if full["fit"] == "keep":
            full["size"] = dict.fromkeys(("height", "width"), full["patch_size"] * full["merge"])
            if full["max_tokens"] < full["merge"] ** 2:
                raise OptionError("max_tokens", full["max_tokens"], f"one token has {full['merge'] ** 2}")
            return full
        size = (full["size"]["width"], full["size"]["height"])
        rows, columns = canvas_grid(size, full["patch_size"], full["rounding"])
        if not rows or not columns or rows % full["merge"] or columns % full["merge"]:
            why = f"the tower makes {rows} x {columns} patches of it, which no cells of {full['merge']} fill"
            raise OptionError("size", full["size"], why)
        return full

    def grid(self, image_size: Size, options: Mapping[str, Any], views: Views = "all") -> PatchMap:
        patch, merge, tokens = options["patch_size"], options["merge"], options["tokens"]
        if tokens is not None:
            return PatchMap.blank(image_size, tokens, views)
        if options["fit"] == "keep":
            rows, cols = kept_grid(image_size, patch, options["max_tokens"], merge)
            return PatchMap.grid(image_size, rows=rows // merge, cols=cols // merge, views=views)
        canvas = (options["size"]["width"], options["size"]["height"])
        rows, cols = canvas_grid(canvas, patch, options["rounding"])
        # From pixels of what is drawn to pixels of the original: patches may end within it, or behind it.
        (width, height), (drawn_width, drawn_height) = (
            image_size,
            drawn_size(image_size, canvas, options["fit"]),
        )
        box = (0.0, 0.0, cols * patch * width / drawn_width, rows * patch * height / drawn_height)
        return PatchMap.grid(image_size, rows=rows // merge, cols=cols // merge, box=box, views=views)

    def processor_arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {key: options[key] for key in self.image_defaults if key != "tokens"}

    def checkpoint_image_options(self, processor: Any, config: PreTrainedConfig) -> dict[str, Any]:
        own = {"size": plain_size(processor.size), "fit": processor.fit, "max_tokens": processor.max_tokens}
        return {**own, **decided(config)}

    def tiny_image_options(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        from v1lit.backbones.timm_config import TimmLMConfig

        with named("model.backbone.tiny"):
            config = TimmLMConfig(text_config={"model_type": "qwen3"}, **self._parts(sizes))
            return {**tower_options(config), **decided(config)}

    def check_fit(self, options: Mapping[str, Any], config: PreTrainedConfig) -> None:
        from v1lit.backbones.timm_tower import tower_grid

        parts: Any = config
        needed = decided(config)
        chosen = {key: options[key] for key in needed}
        if chosen != needed:
            raise ValueError(
                f"the vision tower and the projector need {needed}, but the image options give {chosen}"
            )
        if (options["fit"] == "keep") != parts.tower_facts.naflex:
            kinds = "keep" if parts.tower_facts.naflex else "squash or pad"
            raise OptionError("fit", options["fit"], f"the tower {parts.tower} takes {kinds}")
        if options["fit"] == "keep":
            return
        canvas = (options["size"]["width"], options["size"]["height"])
        stated = canvas_grid(canvas, options["patch_size"], options["rounding"])
        found = tower_grid(parts.tower_spec, (canvas[1], canvas[0]))
        if stated != found:
            raise OptionError(
                "size", options["size"], f"{parts.tower} makes {found} patches of it, not {stated}"
            )

    # ---- model --------------------------------------------------------------------------------------------

    def refuse_pointing(self, config: PreTrainedConfig) -> None:
        if decided(config)["tokens"] is not None:
            raise ValueError(
                "a resampler's tokens look at the whole image, so none has a place to point at\ntake the "
                "projector local_resampler, whose attention stays in a cell, or a strategy without pointers"
            )

    def encode_images(self, model: PreTrainedModel, **image_inputs: Tensor) -> Tensor:
        encode: Any = model
        features: Tensor = encode.image_features(**image_inputs)
        return features

    def blank_image(self, model: PreTrainedModel) -> dict[str, Tensor]:
        import torch

        config: Any = model.config
        facts, merge = config.tower_facts, config.cell
        weight = next(model.get_submodule("vision_tower").parameters())
        (height, width), shape = facts.image_size, [1, 3, *facts.image_size]
        if facts.naflex:
            height = width = merge * facts.patch_size
            shape = [merge**2, facts.patch_size**2 * 3]
        grid = canvas_grid((width, height), facts.patch_size, facts.rounding)
        return {
            "pixel_values": torch.zeros(shape, dtype=weight.dtype, device=weight.device),
            "image_grid_hw": torch.tensor([grid], device=weight.device),
        }

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        from v1lit.backbones.patch_embedding import speed_up_patch_embedding
        from v1lit.backbones.timm_blocks import prepare_tower

        tower = model.get_submodule("vision_tower")
        config: Any = model.config
        prepare_tower(tower)
        embedding = getattr(tower, "patch_embed", None)
        if embedding is not None:
            speed_up_patch_embedding(embedding)
        for name in config.tower_facts.unused:
            tower.get_parameter(name).requires_grad_(False)
        return super().prepare(model)

    def unused_modules(self, model: PreTrainedModel) -> list[nn.Module]:
        from v1lit.backbones.timm_tower import unused_modules

        config: Any = model.config
        return unused_modules(model.get_submodule("vision_tower"), config.tower_facts.unused)

    def vision_work(self, config: PreTrainedConfig, image_inputs: Mapping[str, Tensor]) -> VisionWork:
        from v1lit.backbones.timm_work import images_work

        return images_work(config, image_inputs)

    def check_checkpoint(self, config: Mapping[str, Any], weights: str) -> None:
        from v1lit.backbones.timm_config import check_language

        if "auto_map" in config:
            raise ValueError(f"{weights} names code of its own (auto_map), which v1lit does not run")
        check_language(dict(config.get("text_config") or {}))

    def explain_foreign(self, config: Mapping[str, Any], weights: str) -> str | None:
        classes = config.get("architectures") or [""]
        if not str(classes[0]).endswith("ForCausalLM") or any(
            "vision" in key or "mm_" in key for key in config
        ):
            return None
        return (
            f"{weights} is a {config.get('model_type')!r}, a language model without a vision tower\n"
            f"join it with one: v1lit assemble --tower NAME --language {weights} --out FOLDER"
        )

    def tiny_config(self, tokenizer: PreTrainedTokenizerBase, **sizes: Any) -> PreTrainedConfig:
        from v1lit.backbones.timm_config import TimmLMConfig, check_language

        full = self.check_sizes(sizes)
        text = {
            "model_type": full["language"],
            **text_sizes(tokenizer, full, self.chat.stop),
            "head_dim": full["hidden_size"] // full["heads"],
            "tie_word_embeddings": full["tie_word_embeddings"],
            "bos_token_id": None,
        }
        with named("model.backbone.tiny"):
            image_token_id = token_id(tokenizer, self.chat.image_token)
            config = TimmLMConfig(
                text_config=text,
                image_token_id=image_token_id,
                initializer_range=full["initializer_range"],
                **self._parts(full),
            )
            check_language(config.text_config)
            config.tower_facts  # noqa: B018  raises for a tower that timm does not have
        return config

    def _parts(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Tower and projector of the tiny version, as its config has them."""
        arguments = sizes["tower_arguments"]
        if arguments is None and sizes["tower"] == OF_SIZES:
            arguments = {
                "img_size": sizes["image_size"],
                "patch_size": sizes["patch_size"],
                "embed_dim": sizes["vision_hidden_size"],
                "depth": sizes["vision_layers"],
                "num_heads": sizes["vision_heads"],
                "mlp_ratio": sizes["vision_intermediate_size"] / sizes["vision_hidden_size"],
            }
        names = ("tower", "feature_layers", "projector", "projector_scale", "projector_tokens")
        return {**{name: sizes[name] for name in names}, "tower_arguments": arguments}


def decided(config: Any) -> dict[str, Any]:
    """The image options that a model decides, from its config."""
    from v1lit.backbones.timm_config import NO_PLACE

    facts = config.tower_facts
    return {
        "patch_size": facts.patch_size,
        "rounding": facts.rounding,
        "merge": config.cell,
        "tokens": config.projector_tokens if config.projector == NO_PLACE else None,
    }


def tower_options(config: Any) -> dict[str, Any]:
    """The image options with which a model's tower was trained, from timm's data config."""
    facts = config.tower_facts
    if facts.naflex:
        return {"fit": "keep"}
    height, width = facts.image_size
    return {"fit": "squash", "size": {"height": height, "width": width}}
