"""The decoder of Qwen3-VL, which takes an image token's deep features behind its embedding.

The stock one takes them by themselves, with a mask of where image tokens stand, and asks the GPU for that
mask in every layer that they enter. Here they are columns of the input embeddings: whatever moves, copies or
divides these among ranks does the same with the features. Text has zeros there.

The module is a subclass of the stock one, put in place by changing the class of the existing instance, as in
`v1lit.backbones.qwen_vision`. Source: transformers, models/qwen3_vl/modeling_qwen3_vl.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel


class DeepDecoder(Qwen3VLTextModel):
    """Takes `[batch, tokens, hidden * (1 + deep layers)]` as well: embeddings, and what enters each layer."""

    def forward(self, *args: Any, inputs_embeds: Tensor | None = None, **inputs: Any) -> Any:
        """As the stock decoder; columns of `inputs_embeds` behind the first `hidden` are deep features."""
        if inputs_embeds is not None and inputs_embeds.shape[-1] != self.config.hidden_size:
            inputs_embeds, *deep = inputs_embeds.split(self.config.hidden_size, dim=-1)
            inputs["deepstack_visual_embeds"] = deep
        return super().forward(*args, inputs_embeds=inputs_embeds, **inputs)

    def _deepstack_process(
        self, hidden_states: Tensor, visual_pos_masks: Tensor | None, visual_embeds: Tensor
    ) -> Tensor:
        """`[batch, tokens, hidden]`: states with features of every token; with a mask, as the stock one."""
        if visual_pos_masks is None:
            return hidden_states + visual_embeds.to(hidden_states.dtype)
        stock: Tensor = super()._deepstack_process(hidden_states, visual_pos_masks, visual_embeds)
        return stock


def take_deep_features(model: PreTrainedModel) -> PreTrainedModel:
    """Let the decoder of a Qwen3-VL take deep features behind embeddings, in place; returns the model."""
    for module in model.modules():
        if type(module) is Qwen3VLTextModel:
            module.__class__ = DeepDecoder
    return model
