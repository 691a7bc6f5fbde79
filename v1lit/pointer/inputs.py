"""What a pass of the model begins with: where things stand, images as embeddings, copies, positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import Cache

from v1lit.backbones.segments import Segments, packed_positions
from v1lit.pointer.base import PointAndCopyBase
from v1lit.pointer.layout import TokenLayout
from v1lit.revisit.controls import control

SEVERAL_TOKENS = {
    "assistant_model": "drafts of a smaller model are read",
    "prompt_lookup_num_tokens": "drafts out of the prompt are read",
    "prefill_chunk_size": "a prompt in parts is read",
}
"""Options of transformers' `generate` that read several tokens behind a cache at once, in words."""


def refuse_several_tokens(options: Mapping[str, Any], settings: GenerationConfig) -> None:
    """Raise ValueError for an option of `generate` that does not know of pointers, by its name."""
    for name, what in SEVERAL_TOKENS.items():
        if options.get(name, getattr(settings, name, None)) is not None:
            raise ValueError(
                f"{name}: {what} several tokens at a time, and pointers are decoded one by one; leave it out"
            )


class PointAndCopyInputs(PointAndCopyBase):
    """The part of a `PointAndCopyModel` that makes the inputs of its decoder."""

    def _widened(self, embeds: Tensor) -> Tensor:
        """`[..., width]` of `[..., hidden]`: zeros where an image token has what enters further layers."""
        missing = self.width - embeds.shape[-1]
        return F.pad(embeds, (0, missing)) if missing else embeds

    def _encode(self, image_inputs: dict[str, Tensor], like: Tensor) -> Tensor:
        """`[image_tokens, width]`: input embeddings of the image tokens, in type and device of `like`."""
        pixels = image_inputs.get(self.family.image_inputs[0])
        if pixels is not None and pixels.shape[0]:
            return self.family.encode_images(self.backbone, **image_inputs).to(like)
        if not (self.is_sharded or (self.training and torch.is_grad_enabled())):
            return like.new_zeros(0, self.width)
        # Nothing of a blank image: every rank needs a gradient, here zero, of every parameter, and sharded
        # towers gather their weights together.
        blank = self.family.encode_images(self.backbone, **self.family.blank_image(self.backbone))
        return blank[:0].to(like.dtype)

    def _copies(self, values: Tensor, layout: TokenLayout) -> Tensor:
        """`[choices, width]`: what stands at the input of a pointer to each choice."""
        copies = self._widened(self.strategy.copies(values, self.look))
        if self.is_controlled:
            name = self.config.revisit_options.control
            hidden = self.config.get_text_config().hidden_size
            copies = control(name, copies, layout.counts, layout.seeds, self._blank, hidden)
        return layout.with_ends(copies, self.pointer_head.end_input)

    @property
    def is_controlled(self) -> bool:
        """Whether another thing is copied than what is pointed at: in training, outside of it, or both."""
        options = self.config.revisit_options
        when = "training" if self.training else "decoding"
        return options.control != "none" and options.control_when in (when, "both")

    def _blank(self) -> Tensor:
        """`[width]`: the mean embedding of a blank image's tokens."""
        with torch.no_grad():
            return self.family.encode_images(self.backbone, **self.family.blank_image(self.backbone)).mean(
                dim=0
            )

    def _layout(self, input_ids: Tensor, segments: Segments | None = None) -> TokenLayout:
        start, image = self.config.pointer_start, self.config.image_token_id
        return TokenLayout.of(input_ids, image, start, segments, self.is_controlled, self.strategy.ends)

    def _without_pointers(self, input_ids: Tensor) -> Tensor:
        """`[batch, tokens]`: ids with text in place of pointers, which count as one text token for positions.

        Source: jun297/v1, v1/modeling_v1.py, lines 200-204.
        """
        return input_ids.masked_fill(input_ids >= self.config.pointer_start, 0)

    def _positions(
        self, ids: Tensor, mask: Tensor | None, segments: Segments | None, image_inputs: dict[str, Tensor]
    ) -> Tensor:
        """Rotary positions as the family counts them, from ids without pointers `[batch, tokens]`."""
        if segments is None:
            return self.family.positions(self.backbone, ids, mask, **image_inputs)
        return packed_positions(self.family, self.backbone, ids, segments, **image_inputs)

    def _check_image_inputs(self, image_inputs: dict[str, Any]) -> None:
        unknown = [name for name in image_inputs if name not in self.family.image_inputs]
        if unknown:
            raise ValueError(
                f"{self.config.family} takes the image inputs {', '.join(self.family.image_inputs)}; "
                f"not {', '.join(unknown)}"
            )

    def _segments(
        self,
        input_ids: Tensor,
        lengths: Sequence[int] | None,
        attention_mask: Tensor | None,
        cache: Cache | None,
        learned: bool,
    ) -> Segments | None:
        """The examples of a packed row, None for padded rows. Raises ValueError for what does not fit."""
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError("continuing from a cache needs the pointer_memory that was returned with it")
        if lengths is None:
            return None
        if not self.family.packs:
            raise ValueError(f"{self.config.family} cannot pack examples into one row; pad them instead")
        if input_ids.shape != (1, sum(lengths)):
            raise ValueError(
                f"segments of {sum(lengths)} tokens in all do not fit input_ids of shape "
                f"{tuple(input_ids.shape)}; packed examples fill one row, [1, tokens]"
            )
        if attention_mask is not None:
            raise ValueError("segments have no padding: give segment_lengths or attention_mask, not both")
        if len(lengths) > 1 and not learned:
            raise ValueError(
                "a packed row of several segments has a loss, no logits: each segment points at other image "
                "tokens; give labels, or pad the examples into rows of their own with an attention_mask"
            )
        return Segments(tuple(lengths), self.attention)
