"""Qwen3-VL: as Qwen2-VL, and features of several vision layers enter the first layers of the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from v1lit.backbones.qwen import CHATML, QwenVL
from v1lit.backbones.tiny import text_sizes
from v1lit.errors import OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Qwen3Tower(QwenVL):
    """What Qwen3-VL and Qwen3.5 share: the vision tower but for deep features, and interleaved positions."""

    chat = replace(CHATML, default_system=None)
    image_defaults: ClassVar[Mapping[str, Any]] = {
        **QwenVL.image_defaults,
        "min_pixels": 256 * 256,
        "max_pixels": 4096 * 4096,
        "patch_size": 16,
    }
    pixel_defaults: ClassVar[Mapping[str, Any]] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    tiny_sizes: ClassVar[Mapping[str, Any]] = {
        **QwenVL.tiny_sizes,
        "patch_size": 16,
        "min_pixels": 64 * 64,
        "positions": 256,
    }
    tiny_rotated: ClassVar[float] = 1.0
    """Share of a head of the tiny version that positions rotate."""

    def frame_attention(self, vision: Any, rows: int, columns: int) -> int:
        return int(vision.hidden_size * vision.depth * (rows * columns) ** 2)

    def tiny_text_config(
        self, tokenizer: PreTrainedTokenizerBase, sizes: Mapping[str, Any]
    ) -> dict[str, Any]:
        head = sizes["hidden_size"] // sizes["heads"]
        half = int(head * self.tiny_rotated) // 2
        spatial = half // 3  # every third frequency is one of rows, every third of columns
        return {
            **text_sizes(tokenizer, sizes, self.chat.stop),
            "head_dim": head,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [half - 2 * spatial, spatial, spatial],
                "mrope_interleaved": True,
            },
            "bos_token_id": None,
        }

    def tiny_vision_config(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "hidden_size": sizes["vision_hidden_size"],
            "intermediate_size": sizes["vision_intermediate_size"],
            "out_hidden_size": sizes["hidden_size"],
            "num_position_embeddings": sizes["positions"],
        }


class Qwen3VL(Qwen3Tower):
    """Qwen3-VL: an image token is an embedding, and one more vector for each of the first decoder layers.

    Those are made of deeper or shallower layers of the vision tower, and added to the states behind their
    decoder layer. Source: arXiv 2511.21631; DeepStack, arXiv 2406.04334.
    """

    name = "qwen3_vl"
    model_type = "qwen3_vl"
    model_class = "Qwen3VLForConditionalGeneration"
    hub_id = "Qwen/Qwen3-VL-8B-Instruct"
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **QwenVL.parts,
        "projector": ("model.visual.merger", "model.visual.deepstack_merger_list"),
    }
    tiny_sizes: ClassVar[Mapping[str, Any]] = {**Qwen3Tower.tiny_sizes, "deep_layers": [0, 1]}

    def deep_layers(self, config: PreTrainedConfig) -> int:
        return len(config.vision_config.deepstack_visual_indexes)

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        from transformers import Qwen3Config

        from v1lit.backbones.deep_decoder import take_deep_features

        # Its language layers are those of Qwen3, of which alone transformers says how ranks divide them.
        text: Any = model.config.get_text_config()  # this one alone, not its class
        text.base_model_tp_plan = {**Qwen3Config.base_model_tp_plan, **(text.base_model_tp_plan or {})}
        return take_deep_features(super().prepare(model))

    def check_fit(self, options: Mapping[str, Any], config: PreTrainedConfig) -> None:
        super().check_fit(options, config)
        deep, layers = self.deep_layers(config), config.get_text_config().num_hidden_layers
        if deep > layers:
            raise ValueError(
                f"deepstack_visual_indexes of config.json names {deep} layers of the vision tower, whose "
                f"features enter as many decoder layers, but there are {layers}"
            )

    def explain_foreign(self, config: Mapping[str, Any], weights: str) -> str | None:
        if config.get("model_type") != "qwen3_vl_moe":
            return None
        return (
            f"{weights} is a Qwen3-VL with experts, whose layers v1lit does not divide; "
            f"use a dense one such as {self.hub_id}"
        )

    def check_sizes(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        full = super().check_sizes(sizes)
        deep, layers = full["deep_layers"], full["vision_layers"]
        if sorted(set(deep)) != list(deep) or not all(0 <= layer < layers for layer in deep):
            why = f"give numbers of vision layers, from 0 to {layers - 1}, in order"
            raise OptionError("deep_layers", deep, why, "model.backbone.tiny")
        if len(deep) > full["layers"]:
            why = f"each enters a decoder layer, and there are layers={full['layers']}"
            raise OptionError("deep_layers", deep, why, "model.backbone.tiny")
        return full

    def tiny_vision_config(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().tiny_vision_config(sizes), "deepstack_visual_indexes": list(sizes["deep_layers"])}
