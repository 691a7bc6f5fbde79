"""Qwen3.5: the vision tower of Qwen3-VL without deep features, and a decoder that mostly carries states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from v1lit.backbones.image_options import check_positive
from v1lit.backbones.qwen3 import Qwen3Tower
from v1lit.backbones.work import StateWork
from v1lit.errors import OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LINEAR, FULL = "linear_attention", "full_attention"
"""What transformers calls the two kinds of decoder layers."""


class Qwen35(Qwen3Tower):
    """Qwen3.5: of four decoder layers three are gated delta nets, which carry a state from token to token.

    Attention, in the fourth, has a gate on its output. Source: arXiv 2412.06464; transformers,
    models/qwen3_5/modeling_qwen3_5.py.
    """

    name = "qwen3_5"
    model_type = "qwen3_5"
    model_class = "Qwen3_5ForConditionalGeneration"
    hub_id = "Qwen/Qwen3.5-9B"
    tiny_sizes: ClassVar[Mapping[str, Any]] = {
        **Qwen3Tower.tiny_sizes,
        "attention_layers": [1],
        "linear_key_heads": 2,
        "linear_value_heads": 4,
        "linear_head_dim": 16,
    }
    tiny_rotated = 0.5  # not the released quarter, of which small heads would leave rows and columns nothing

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        from v1lit.backbones.linear_attention import keep_segments_apart

        return keep_segments_apart(super().prepare(model))

    def state_work(self, config: PreTrainedConfig) -> StateWork:
        text = config.get_text_config()
        heads, layers = text.linear_num_value_heads, text.layer_types.count(LINEAR)
        numbers = heads * text.linear_key_head_dim * text.linear_value_head_dim
        # Of a token: what its key finds in the state, what is put there instead, what its query finds.
        return StateWork(layers, 3 * layers * numbers)

    def explain_foreign(self, config: Mapping[str, Any], weights: str) -> str | None:
        model_type = config.get("model_type")
        if model_type == "qwen3_5_moe":
            return (
                f"{weights} is a Qwen3.5 with experts, whose layers v1lit does not divide; "
                f"use a dense one such as {self.hub_id}"
            )
        if model_type in ("qwen3_5_text", "qwen3_5_moe_text"):
            return (
                f"{weights} is the language model of a Qwen3.5 alone, without its vision tower; "
                f"use a whole one such as {self.hub_id}"
            )
        return None

    def check_sizes(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        full = super().check_sizes(sizes)
        attending, layers = full["attention_layers"], full["layers"]
        if not attending or sorted(set(attending)) != list(attending) or attending[-1] >= layers:
            why = f"give at least one number of a decoder layer, from 0 to {layers - 1}, in order"
            raise OptionError("attention_layers", attending, why, "model.backbone.tiny")
        for name in ("linear_key_heads", "linear_value_heads", "linear_head_dim"):
            check_positive(name, full[name])
        if full["linear_value_heads"] % full["linear_key_heads"]:
            why = f"it must be a multiple of linear_key_heads={full['linear_key_heads']}"
            raise OptionError("linear_value_heads", full["linear_value_heads"], why, "model.backbone.tiny")
        return full

    def tiny_text_config(
        self, tokenizer: PreTrainedTokenizerBase, sizes: Mapping[str, Any]
    ) -> dict[str, Any]:
        text = super().tiny_text_config(tokenizer, sizes)
        text["rope_parameters"]["partial_rotary_factor"] = self.tiny_rotated
        return {
            **text,
            "layer_types": [
                FULL if layer in sizes["attention_layers"] else LINEAR for layer in range(sizes["layers"])
            ],
            "linear_num_key_heads": sizes["linear_key_heads"],
            "linear_num_value_heads": sizes["linear_value_heads"],
            "linear_key_head_dim": sizes["linear_head_dim"],
            "linear_value_head_dim": sizes["linear_head_dim"],
        }
