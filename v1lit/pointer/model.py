"""`PointAndCopyModel`: any supported backbone with a pointer head, as one transformers model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, GenerationMixin
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from v1lit.backbones.attention import packed_decoder_arguments
from v1lit.backbones.cache_name import CACHE
from v1lit.backbones.cache_name import NAMES as CACHE_NAMES
from v1lit.backbones.image_blocks import padded_masks
from v1lit.backbones.segments import Segments
from v1lit.pointer.inputs import PointAndCopyInputs, refuse_several_tokens
from v1lit.pointer.joint_loss import (
    LossShare,
    PointerLoss,
    Pointers,
    Reduction,
    joint_logits,
    pointer_cross_entropy,
    verify_pointer_loss,
)
from v1lit.pointer.layout import Targets, TokenLayout
from v1lit.pointer.memory import PointerMemory, copy_values, embed_with_copies
from v1lit.pointer.model_config import PointAndCopyConfig
from v1lit.pointer.output import PointAndCopyOutput, Watch
from v1lit.pointer.region_loss import add_regions, region_losses, split_normalizer
from v1lit.pointer.repetition import as_of_words
from v1lit.pointer.weighting import loss_options, position_weights, weight_sums
from v1lit.revisit.strategy import EncodeText


class Parts(NamedTuple):
    """What a decoding step calls; to look it up anew takes 0.5 % of the step of a small model."""

    embeddings: nn.Module
    decoder: nn.Module
    head: nn.Module


class PointAndCopyModel(PointAndCopyInputs, GenerationMixin):
    """A backbone that may point at its image tokens and copies what stands at their inputs into the stream.

    The token id `V + j` (`V = config.pointer_start`) is the pointer to the j-th image token of its sequence
    (a row, or a segment of a packed row), counted over all its images. `forward` is the mechanism in order:
    embed with copies, decode, point, and learn or hand on what is copied next. Source: arXiv 2505.18842;
    jun297/v1, v1/modeling_v1.py, lines 127-545.
    """

    loss_share: LossShare | None = None
    """Ranks that compute the same batches as this one, and share the positions of their loss."""
    decode: Callable[..., Any] | None = None
    """Calls the decoder, the first argument, with the others, where ranks share the tokens of a row."""
    _found: Parts | None = None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        image_embeds: Tensor | None = None,
        pointer_memory: PointerMemory | None = None,
        segment_lengths: Sequence[int] | None = None,
        reduction: Reduction = "mean",
        normalizer: Tensor | None = None,
        past_key_values: Cache | None = None,
        return_dict: bool | None = None,
        **image_inputs: Any,
    ) -> PointAndCopyOutput:
        """The joint logits of every token or, with `labels`, the loss.

        Args:
            input_ids: `[batch, tokens]`; text, image placeholders, and pointers `V + j`.
            attention_mask: `[batch, tokens]`; 1 where there is a token.
            cache: of an earlier call, with its `pointer_memory`; before transformers 5.24 `past_key_values`.
            labels: `[batch, tokens]`; -100 where nothing is learned. Position t learns label t + 1.
            logits_to_keep: logits of the last N positions only, 0 for all.
            image_embeds: `[batch, pointers, width]`; input embeddings of the images, not to be computed.
            segment_lengths: tokens of every example of a packed row `[1, tokens]`; none sees another.
            reduction: over supervised positions: "mean", "sum", or "none" for `[positions]`.
            normalizer: what "mean" divides by in place of this batch's `weight_sums`, of the same shape.
            **image_inputs: the backbone's image tensors, such as `pixel_values`, for all images in order.

        Raises ValueError for image inputs that the backbone does not take or that do not fit the text, for
        pointers to image tokens that a sequence does not have and for segments that do not fit the row.
        """
        decoding: dict[str, Any] = {"attention_mask": attention_mask, "use_cache": use_cache}
        decoding[CACHE] = cache = past_key_values if cache is None else cache
        self._check_image_inputs(image_inputs)
        if pointer_memory is not None:  # not the cache's length: reading that would wait for the device
            decoding["position_ids"] = position_ids
            return self._decode_next(input_ids, pointer_memory, logits_to_keep, decoding)
        segments = self._segments(input_ids, segment_lengths, attention_mask, cache, labels is not None)
        layout = self._layout(input_ids, segments)
        targets = None if labels is None else self._targets(labels, layout, input_ids)
        text_ids = self._without_pointers(input_ids)
        if position_ids is None:
            position_ids = self._positions(text_ids, attention_mask, segments, image_inputs)
        text = self._widened(self.get_input_embeddings()(text_ids))
        values = self._encode(image_inputs, text) if image_embeds is None else image_embeds[layout.mask]
        copies = self._copies(layout.check(values), layout)
        embeds = embed_with_copies(text, values, layout, copies)
        decoding |= self._masks(segments, layout, embeds, attention_mask)
        if targets is not None:
            decoding["use_cache"] = False
        decoded = self._decode(inputs_embeds=embeds, position_ids=position_ids, **decoding)
        if targets is not None:
            return self._loss(decoded.last_hidden_state, values, layout, targets, reduction, normalizer)
        keys = self._keys(decoded.last_hidden_state, values, layout)
        return self._point(decoded, self._memory(keys, copies, layout), logits_to_keep)

    def _memory(self, keys: Tensor, copies: Tensor, layout: TokenLayout) -> PointerMemory:
        mask = layout.choice_mask if self.strategy.points else torch.zeros_like(layout.choice_mask)
        return PointerMemory(layout.pad_choices(keys), layout.pad_choices(copies), mask)

    def _masks(
        self, segments: Segments | None, layout: TokenLayout, embeds: Tensor, attention_mask: Tensor | None
    ) -> dict[str, Any]:
        """What tells the decoder which tokens of a whole row see which."""
        blocks = layout.blocks if self.family.whole_images else ()
        if segments is not None:
            return packed_decoder_arguments(replace(segments, blocks=blocks), embeds.device, embeds.dtype)
        if not blocks:
            return {"attention_mask": attention_mask}
        text = self.config.get_text_config()
        return {"attention_mask": padded_masks(text, embeds, attention_mask, blocks)}

    def _decode(self, **inputs: Any) -> Any:
        decoder = self.backbone.get_decoder()
        return decoder(**inputs) if self.decode is None else self.decode(decoder, **inputs)

    def _decode_next(
        self, input_ids: Tensor, memory: PointerMemory, logits_to_keep: int, decoding: dict[str, Any]
    ) -> PointAndCopyOutput:
        """The joint logits of tokens that follow those of a cache."""
        parts = self._parts
        text = self._widened(parts.embeddings(self._without_pointers(input_ids)))
        embeds = copy_values(text, input_ids - self.config.pointer_start, memory)
        decoded = parts.decoder(inputs_embeds=embeds, **decoding)
        return self._point(decoded, memory, logits_to_keep)

    @property
    def _parts(self) -> Parts:
        """As found for this generation, else as they are now."""
        if self._found is not None:
            return self._found
        return Parts(self.get_input_embeddings(), self.backbone.get_decoder(), self.get_output_embeddings())

    def _point(self, decoded: Any, memory: PointerMemory, logits_to_keep: int) -> PointAndCopyOutput:
        """Joint logits of the last `logits_to_keep` positions, 0 for all, from what the decoder returned."""
        states = decoded.last_hidden_state[:, -logits_to_keep:]
        queries = self.pointer_head.project_queries(states).to(memory.keys.device)  # of a device map
        scores = self.pointer_head.scores(queries, memory.keys, memory.floor)
        logits = joint_logits(
            self._parts.head(states),
            scores,
            self.pointer_head.gate_values(states),
            self.config.pointer_start,
        )
        named: dict[str, Any] = dict.fromkeys(("cache", CACHE), getattr(decoded, CACHE))
        return PointAndCopyOutput(logits=logits, pointer_memory=memory, **named)

    def _loss(
        self,
        states: Tensor,
        values: Tensor,
        layout: TokenLayout,
        targets: Targets,
        reduction: Reduction,
        normalizer: Tensor | None,
    ) -> PointAndCopyOutput:
        """The loss at the positions of `targets`.

        Args:
            states: `[batch, tokens, hidden]`, of the decoder.
            values: `[image_tokens, width]`, as they are copied.
        """
        own, share = targets, None if reduction == "none" else self.loss_share
        pointer, start = self.pointer_options, self.config.pointer_start
        if share is not None:
            states, values = share.enter(states), share.enter(values)
            own = targets.part(share.part(len(targets.labels)))
            if reduction == "mean" and normalizer is None:
                normalizer = weight_sums(targets, pointer, start)  # of its own part, ranks would differ
        of_regions = None
        if targets.regions is not None and reduction == "mean":
            normalizer = weight_sums(targets, pointer, start) if normalizer is None else normalizer
            normalizer, of_regions = split_normalizer(normalizer, pointer.loss)
        keys = self._keys(states, values, layout)
        hidden = states.flatten(0, 1).index_select(0, own.tokens)
        queries = self.pointer_head.project_queries(hidden)
        pointers = Pointers(queries, keys, own.positions, layout.choices, self.pointer_head.scale)
        options, weights = loss_options(pointer), position_weights(own, pointer)
        gate = self.pointer_head.gate_values(hidden)

        def run(hidden: Tensor, head: Tensor) -> tuple[Tensor, PointerLoss, float | None]:
            rows = (hidden, head, own.labels, start, pointers, options)
            verified = None
            if self.verify_loss and torch.is_grad_enabled():
                verified = max(verify_pointer_loss(*rows, gate=gate, weights=weights).values())
            terms = pointer_cross_entropy(
                *rows, gate=gate, weights=weights, reduction=reduction, normalizer=normalizer
            )
            return terms.loss, terms, verified  # the loss by itself: a sharded head looks for tensors

        loss, terms, verified = self.with_head(hidden, run)
        terms = replace(terms, loss=loss)  # as it left the head, whose weight waits for its gradient there
        if own.regions is not None:
            each = self.strategy.regions_weight * region_losses(pointers, gate, own.regions)
            terms = add_regions(terms, each, own.regions, reduction, of_regions)
        if share is not None:
            terms = share.total(terms, targets.labels)
        terms.predictions = targets.marked(terms.predictions)
        return PointAndCopyOutput(
            loss=terms.loss,
            losses=terms.means(pointer.z_weight),
            terms=terms,
            targets=targets.marked(targets.labels),
            positions=targets.positions,
            verified=verified,
        )

    def _targets(self, labels: Tensor, layout: TokenLayout, input_ids: Tensor) -> Targets:
        with_regions = input_ids if self.strategy.regions_weight else None
        return Targets.of(labels, layout, self.config.pointer_start, with_regions)

    def _keys(self, states: Tensor, values: Tensor, layout: TokenLayout) -> Tensor:
        """`[choices, width]`: keys of the choices of all sequences in order."""
        if self.pointer_options.key_source == "hidden":
            values = states.flatten(0, 1).to(layout.images.device).index_select(0, layout.images)
        keys = self.pointer_head.project_keys(values[:, : states.shape[-1]]).to(layout.images.device)
        return layout.with_ends(keys, self.pointer_head.end_key)

    @torch.no_grad()
    def embed_images(self, input_ids: Tensor, **image_inputs: Tensor) -> Tensor:
        """`[batch, pointers, width]`: input embeddings of the image tokens of every row, for `image_embeds`.

        Raises ValueError where `input_ids` `[batch, tokens]` have more or fewer places for them.
        """
        layout = self._layout(self._without_pointers(input_ids))  # whose images may be elsewhere
        like = torch.empty(0, dtype=self.get_input_embeddings().weight.dtype, device=input_ids.device)
        return layout.pad(layout.check(self._encode(image_inputs, like)))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        encode_text: EncodeText | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers: greedy, sampling, beams. Left-pad batches and pass their `attention_mask`.

        Images are encoded once, here, into one row of embeddings per sequence, so that expanding rows into
        beams keeps every row with its own images. The image placeholder itself is never generated, and a
        penalty on repetition is one of words: see `v1lit.pointer.repetition`. Strategies that look for words
        in what was generated need `encode_text`, the processor's. A `watch` is told of every step. Raises
        what `forward` raises.
        """
        image_inputs = {name: kwargs.pop(name) for name in self.family.image_inputs if name in kwargs}
        if self.is_sharded:
            raise ValueError(
                "the weights of this model are divided over ranks, which would have to generate in step; "
                "open a checkpoint or an export of it in one process"
            )
        if "segment_lengths" in kwargs:
            raise ValueError("generate takes one example per row, padded on the left, not segments of a row")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        for name in CACHE_NAMES:
            if name in kwargs:
                kwargs[CACHE] = kwargs.pop(name)
        settings = kwargs.get("generation_config") or self.generation_config
        refuse_several_tokens(kwargs, settings)
        if not self.strategy.beams and (kwargs.get("num_beams", settings.num_beams) or 1) > 1:
            raise ValueError(
                f"{self.config.revisit_options.name} lets all patches of a region follow its first one in a "
                "row, and beams move rows; generate with num_beams=1, greedy or sampled"
            )
        start, image = self.config.pointer_start, self.config.image_token_id
        kwargs = as_of_words(kwargs, settings, start, image)
        steering = self.strategy.steering(start, image, encode_text)
        if steering:
            kwargs["logits_processor"] = [*(kwargs.get("logits_processor") or []), *steering]
        if kwargs.get("image_embeds") is None:
            kwargs["image_embeds"] = self.embed_images(input_ids, **image_inputs)
        if kwargs.get("position_ids") is None:
            text_ids = self._without_pointers(input_ids)
            kwargs["position_ids"] = self._positions(text_ids, attention_mask, None, image_inputs)
        self._found = self._parts
        try:
            return super().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        finally:
            self._found = None

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, watch: Watch | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        if watch is not None:
            watch.reads(input_ids)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        return inputs

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        if model_kwargs.get("watch") is not None:
            model_kwargs["watch"].finds(outputs)
        logits: Tensor = outputs["logits"]
        logits[..., self.config.image_token_id] = -torch.inf  # a processor would copy all logits
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        if model_kwargs.get("use_cache", True):
            assert isinstance(outputs, PointAndCopyOutput)
            # Rows become beams before prefill, and beams only move within one prompt: no reordering.
            model_kwargs["pointer_memory"] = outputs.pointer_memory
        return model_kwargs


AutoModelForImageTextToText.register(PointAndCopyConfig, PointAndCopyModel, exist_ok=True)
