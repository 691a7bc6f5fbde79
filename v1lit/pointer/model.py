"""`PointAndCopyModel`: any supported backbone with a pointer head, as one transformers model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from v1lit.backbones.attention import (
    packed_decoder_arguments,
    set_attention,
    stock_attention,
    use_segments,
)
from v1lit.backbones.cache_name import CACHE
from v1lit.backbones.cache_name import NAMES as CACHE_NAMES
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.contract import Backbone
from v1lit.backbones.efficiency import compile_layers, enable_checkpointing
from v1lit.backbones.folder import check_exported
from v1lit.backbones.hub import looks_local
from v1lit.backbones.load import freeze, load_backbone, refuse_incomplete
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.segments import Segments, packed_positions
from v1lit.paths import expand_path
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.head import PointerHead
from v1lit.pointer.joint_loss import (
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


@dataclass
class PointAndCopyOutput(ModelOutput):
    """What `PointAndCopyModel.forward` gives."""

    loss: Tensor | None = None
    """Mean over supervised positions, `[]`; with labels only."""
    logits: Tensor | None = None
    """float32 `[batch, tokens, V + pointers]`, lowest float for absent pointers; None with labels."""
    losses: dict[str, Tensor] | None = None
    """Parts of the loss; their sum is `loss`."""
    terms: PointerLoss | None = None
    """The same as sums and counts, for exact averages over several batches; and predictions."""
    targets: Tensor | None = None
    """Labels of the supervised positions, in row-major order, `[positions]`."""
    verified: float | None = None
    """Largest relative error of the loss or a gradient, where it was compared with the reference."""
    cache: Cache | None = None
    """Keys and values of all tokens so far, whatever transformers calls it."""
    if CACHE == "past_key_values":
        past_key_values: Cache | None = None
        """The same, where the `generate` of an earlier transformers looks for it."""
    pointer_memory: PointerMemory | None = None


class PointAndCopyModel(PreTrainedModel, GenerationMixin):
    """A backbone that may point at its image tokens and copies their input embeddings into the stream.

    The token id `V + j` (`V = config.pointer_start`) is the pointer to the j-th image token of its sequence
    (a row, or a segment of a packed row), counted over all its images. arXiv 2505.18842.
    """

    config_class = PointAndCopyConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")  # type: ignore[assignment]  # any sequence of names will do
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    accepts_loss_kwargs = False

    def __init__(self, config: PointAndCopyConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.family: Backbone = get_backbone(config.family)
        if backbone is None:
            backbone = AutoModelForImageTextToText.from_config(config.backbone_config)
        self.backbone = self.family.prepare(backbone)
        if self.family.packs:
            use_segments(self.backbone.config.get_text_config())
        self.verify_loss = False
        """Whether the loss is compared with its readable reference; raises `LossMismatchError`."""
        self.attention = "sdpa"
        """Kernel that attends inside the segments of packed rows; see `v1lit.backbones.attention`."""
        self.pointer_options = config.pointer_options
        self.pointer_head = PointerHead(config.get_text_config().hidden_size, self.pointer_options)
        self.post_init()

    # ------------------------------------------------------------------ making one

    @classmethod
    def build(cls, backbone: BackboneConfig, pointer: PointerConfig | None = None) -> PointAndCopyModel:
        """A model with a fresh pointer head on the backbone's weights; tiny backbones are random.

        Parts named in `backbone.freeze` do not learn. Raises what `load_backbone` raises.
        """
        pointer = pointer or PointerConfig()
        inner = load_backbone(backbone)
        config = PointAndCopyConfig(inner.config, family=backbone.name, pointer=asdict(pointer))
        with torch.random.fork_rng(devices=[]):
            model = cls(config, backbone=inner)
        model.init_pointer()
        model.pointer_head.to(dtype=inner.dtype, device=inner.device)
        model.generation_config = inner.generation_config
        freeze(inner, model.family, [part for part in backbone.freeze if part != "pointer"])
        if "pointer" in backbone.freeze:
            model.pointer_head.requires_grad_(False)
        enable_checkpointing(inner, model.family, backbone.gradient_checkpointing)
        compile_layers(inner, model.family, backbone.compile)
        return model

    def use_attention(self, kernel: str) -> None:
        """Attend inside the segments of packed rows with this kernel, chosen by `choose_attention`.

        The vision tower and generation follow where the kernel's library offers them something.
        """
        if self.family.packs:
            self.attention = kernel
            set_attention(self.backbone, kernel)
            self.config._attn_implementation_internal = stock_attention(kernel)  # `generate` asks this one

    def init_pointer(self) -> None:
        """Start the head as in `PointerHead.init_weights`; with a gate, double `lm_head` to undo g = 1/2."""
        self.pointer_head.init_weights(getattr(self.config.get_text_config(), "initializer_range", 0.02))
        if self.pointer_options.gate:
            head = self.get_output_embeddings()
            if head.weight is self.get_input_embeddings().weight:
                raise ValueError(
                    "pointer.gate doubles the language-model head at the start, but this backbone ties it to "
                    "the input embeddings; set tie_word_embeddings to false, or pointer.gate to false"
                )
            head.weight.data.mul_(2.0)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # stricter
        """Open a folder that `save_pretrained` wrote; options as in transformers.

        Raises ValueError for a folder of another kind, for files that are missing or damaged, and for weights
        that are missing, unexpected or of another shape, by name. Pickled weights are never opened.
        """
        folder = expand_path(folder)
        if Path(folder).exists() or looks_local(str(folder)):
            check_exported(Path(folder, kwargs.get("subfolder") or ""))
        kwargs["use_safetensors"] = True
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        refuse_incomplete(info, folder)
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the model into a folder that `from_pretrained` opens; options as in transformers."""
        super().save_pretrained(expand_path(save_directory), *args, **kwargs)

    @classmethod
    def from_published(cls, folder: str | Path, **kwargs: Any) -> PointAndCopyModel:
        """Open a checkpoint in the layout of the published v1-7B. See `v1lit.pointer.published`."""
        from v1lit.pointer.published import load_published

        return load_published(folder, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PointerHead):
            module.init_weights(getattr(self.config.get_text_config(), "initializer_range", 0.02))

    def get_input_embeddings(self) -> nn.Embedding:
        return cast(nn.Embedding, self.backbone.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return cast(nn.Linear, self.backbone.get_output_embeddings())

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_output_embeddings(new_embeddings)

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        image_values: Tensor | None = None,
        pointer_memory: PointerMemory | None = None,
        segment_lengths: Sequence[int] | None = None,
        reduction: Reduction = "mean",
        normalizer: Tensor | None = None,
        past_key_values: Cache | None = None,
        return_dict: bool | None = None,
        **image_inputs: Any,
    ) -> PointAndCopyOutput:
        """Joint logits, or with `labels` the loss.

        input_ids `[batch, tokens]`: text, image placeholders, and pointers `V + j`. attention_mask
        `[batch, tokens]`, 1 where there is a token. labels `[batch, tokens]`, -100 where nothing is learned;
        shifted inside: position t learns label t + 1. `**image_inputs`: the backbone's image tensors for all
        images of the batch in order, such as `pixel_values` and `image_grid_thw`. Instead of those,
        `image_values [batch, pointers, hidden]` may hold the images' input embeddings. `logits_to_keep`:
        logits of the last so many positions only, 0 for all. `return_dict` is what `generate` passes to every
        model; the output is always a `PointAndCopyOutput`.

        cache, pointer_memory: those that an earlier call gave, to go on behind its tokens; an empty cache
        and no memory to begin. `past_key_values` is the cache's name before transformers 5.24.

        segment_lengths: tokens of every example where these stand one behind another in one row, `[1,
        tokens]`, without padding. None sees or points to another, and results are those of each on its own.
        reduction: of the loss over supervised positions: "mean", "sum", or "none" for `[positions]`.
        normalizer: with "mean", by what the summed loss is divided in place of the sum of this batch's
        weights, `[]`, or `[2]` for separate losses (text, pointers): that of a whole optimizer step, say.

        Raises ValueError for image inputs that the backbone does not take, for features that do not fit the
        placeholders, for pointers to image tokens that a sequence does not have and for segments that do not
        fit the row.
        """
        self._check_image_inputs(image_inputs)
        cache = past_key_values if cache is None else cache
        if pointer_memory is not None:  # not the cache's length: reading that would wait for the device
            return self._go_on(
                input_ids, pointer_memory, logits_to_keep,
                {CACHE: cache, "attention_mask": attention_mask, "position_ids": position_ids,
                 "use_cache": use_cache},
            )  # fmt: skip
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError(
                "going on from a cache needs pointer_memory, as the forward pass that filled it gave it"
            )
        segments = self._segments(input_ids, segment_lengths)
        if segments is not None and attention_mask is not None:
            raise ValueError("segments have no padding: give segment_lengths or attention_mask, not both")
        layout = self._layout(input_ids, segments)
        targets = None if labels is None else Targets.of(labels, layout, self.config.pointer_start)
        safe_ids = self._without_pointers(input_ids)
        if position_ids is None:
            position_ids = self._positions(safe_ids, attention_mask, segments, image_inputs)
        values = image_values[layout.mask] if image_values is not None else self._image_values(image_inputs)
        text = self.get_input_embeddings()(safe_ids)
        embeddings = embed_with_copies(text, layout.check(values), layout)
        arguments: dict[str, Any] = {"attention_mask": attention_mask, "use_cache": use_cache}
        if segments is not None:
            arguments = packed_decoder_arguments(segments, embeddings.device, embeddings.dtype)
        elif targets is not None:
            arguments["use_cache"] = False
        decoded = self.backbone.get_decoder()(
            inputs_embeds=embeddings, position_ids=position_ids, **{CACHE: cache}, **arguments
        )
        states = decoded.last_hidden_state
        keys = self._keys(states, values, layout)
        if targets is not None:
            return self._loss(states, targets, keys, layout, reduction, normalizer)
        memory = PointerMemory(layout.pad(keys), layout.pad(values), layout.mask)
        return self._output(states, memory, logits_to_keep, getattr(decoded, CACHE))

    def _go_on(
        self, input_ids: Tensor, memory: PointerMemory, logits_to_keep: int, arguments: dict[str, Any]
    ) -> PointAndCopyOutput:
        """The logits of tokens that follow those of a cache."""
        decoded = self.backbone.get_decoder()(inputs_embeds=self._embed_next(input_ids, memory), **arguments)
        return self._output(decoded.last_hidden_state, memory, logits_to_keep, getattr(decoded, CACHE))

    def _output(
        self, states: Tensor, memory: PointerMemory, logits_to_keep: int, cache: Cache | None
    ) -> PointAndCopyOutput:
        if logits_to_keep:
            states = states[:, -logits_to_keep:]
        named: dict[str, Any] = {"cache": cache, CACHE: cache}
        return PointAndCopyOutput(logits=self._logits(states, memory), pointer_memory=memory, **named)

    def _check_image_inputs(self, image_inputs: dict[str, Any]) -> None:
        unknown = [name for name in image_inputs if name not in self.family.image_inputs]
        if unknown:
            raise ValueError(
                f"{self.config.family} takes the image inputs {', '.join(self.family.image_inputs)}; "
                f"not {', '.join(unknown)}"
            )

    def _without_pointers(self, input_ids: Tensor) -> Tensor:
        """Pointers count as text for positions and never reach the embedding table, `[batch, tokens]`."""
        return input_ids.masked_fill(input_ids >= self.config.pointer_start, 0)

    def _segments(self, input_ids: Tensor, lengths: Sequence[int] | None) -> Segments | None:
        if lengths is None:
            return None
        if not self.family.packs:
            raise ValueError(f"{self.config.family} cannot pack examples into one row; pad them instead")
        if input_ids.shape != (1, sum(lengths)):
            raise ValueError(
                f"segments of {sum(lengths)} tokens in all do not fit input_ids of shape "
                f"{tuple(input_ids.shape)}; packed examples fill one row, [1, tokens]"
            )
        return Segments(tuple(lengths), self.attention)

    def _positions(
        self,
        safe_ids: Tensor,
        mask: Tensor | None,
        segments: Segments | None,
        image_inputs: dict[str, Tensor],
    ) -> Tensor:
        if segments is None:
            return self.family.positions(self.backbone, safe_ids, mask, **image_inputs)
        return packed_positions(self.family, self.backbone, safe_ids, segments, **image_inputs)

    def _image_values(self, image_inputs: dict[str, Tensor]) -> Tensor:
        """Input embeddings of the image tokens, `[image_tokens, hidden]`."""
        weight = self.get_input_embeddings().weight
        pixels = image_inputs.get(self.family.image_inputs[0])
        if pixels is not None and pixels.shape[0]:
            return self.family.encode_images(self.backbone, **image_inputs).to(weight.dtype)
        if not (self.training and torch.is_grad_enabled()):
            return weight.new_zeros(0, weight.shape[1])
        # Nothing of a blank image: every rank needs a gradient, here zero, of every parameter, and sharded
        # towers gather their weights together.
        blank = self.family.encode_images(self.backbone, **self.family.blank_image(self.backbone))
        return blank[:0].to(weight.dtype)

    def _embed_next(self, input_ids: Tensor, memory: PointerMemory) -> Tensor:
        text = self.get_input_embeddings()(self._without_pointers(input_ids))
        if memory.values.shape[1] == 0:
            return text
        indices = (input_ids - self.config.pointer_start).clamp(min=0)
        is_pointer = (input_ids >= self.config.pointer_start)[..., None]
        return torch.where(is_pointer, copy_values(memory.values, indices), text)

    def _layout(self, input_ids: Tensor, segments: Segments | None = None) -> TokenLayout:
        return TokenLayout.of(input_ids, self.config.image_token_id, self.config.pointer_start, segments)

    def _keys(self, states: Tensor, values: Tensor, layout: TokenLayout) -> Tensor:
        """Keys of the image tokens of all sequences in order, `[image_tokens, width]`."""
        if self.pointer_options.key_source == "hidden":
            values = states.flatten(0, 1).index_select(0, layout.images)
        return self.pointer_head.project_keys(values)

    def _logits(self, states: Tensor, memory: PointerMemory) -> Tensor:
        queries = self.pointer_head.project_queries(states)
        return joint_logits(
            self.get_output_embeddings()(states),
            self.pointer_head.scores(queries, memory.keys, memory.mask),
            self.pointer_head.gate_values(states),
            self.config.pointer_start,
        )

    def _loss(
        self,
        states: Tensor,
        targets: Targets,
        keys: Tensor,
        layout: TokenLayout,
        reduction: Reduction,
        normalizer: Tensor | None,
    ) -> PointAndCopyOutput:
        hidden = states.flatten(0, 1).index_select(0, targets.places)
        queries = self.pointer_head.project_queries(hidden)
        pointers = Pointers(queries, keys, targets.positions, layout.counts, self.pointer_head.scale)
        head, start = self.get_output_embeddings().weight, self.config.pointer_start
        options = self.pointer_options
        arguments: dict[str, Any] = {
            "gate": self.pointer_head.gate_values(hidden),
            # Float32 whatever the default type, which Lightning changes for half precision.
            "weights": 1.0 + (options.first_pointer_weight - 1.0) * targets.first.float(),
            "label_smoothing": options.label_smoothing,
            "z_weight": options.z_weight,
            "z_top_k": options.z_top_k,
            "separate": options.loss == "separate",
            "implementation": options.loss_implementation,
            "chunk": options.loss_chunk,
        }
        given = (hidden, head, targets.labels, start, pointers)
        verified = None
        if self.verify_loss and torch.is_grad_enabled():
            verified = max(verify_pointer_loss(*given, **arguments).values())
        terms = pointer_cross_entropy(*given, reduction=reduction, normalizer=normalizer, **arguments)
        return PointAndCopyOutput(
            loss=terms.loss,
            losses=terms.means(options.z_weight),
            terms=terms,
            targets=targets.labels,
            verified=verified,
        )

    # ------------------------------------------------------------------ generate

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """As in transformers: greedy, sampling, beams. Left-pad batches and pass their `attention_mask`.

        Images are encoded once, here, into one row of values per sequence, so that expanding rows into beams
        keeps every row with its own images. The image placeholder itself is never generated.
        """
        image_inputs = {name: kwargs.pop(name) for name in self.family.image_inputs if name in kwargs}
        if "segment_lengths" in kwargs:
            raise ValueError("generate takes one example per row, padded on the left, not segments of a row")
        layout = self._layout(input_ids)
        safe_ids = self._without_pointers(input_ids)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        for name in CACHE_NAMES:
            if name in kwargs:
                kwargs[CACHE] = kwargs.pop(name)
        settings = kwargs.get("generation_config") or self.generation_config
        suppressed = kwargs.get("suppress_tokens", settings.suppress_tokens) or []
        kwargs["suppress_tokens"] = [*suppressed, self.config.image_token_id]
        if kwargs.get("image_values") is None:
            kwargs["image_values"] = layout.pad(layout.check(self._image_values(image_inputs)))
        if kwargs.get("position_ids") is None:
            kwargs["position_ids"] = self.family.positions(
                self.backbone, safe_ids, attention_mask, **image_inputs
            )
        return super().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        if model_kwargs.get("use_cache", True):
            assert isinstance(outputs, PointAndCopyOutput)
            # Rows become beams before prefill, and beams only move within one prompt: no reordering.
            model_kwargs["pointer_memory"] = outputs.pointer_memory
        return model_kwargs


AutoConfig.register("v1lit", PointAndCopyConfig, exist_ok=True)
AutoModelForImageTextToText.register(PointAndCopyConfig, PointAndCopyModel, exist_ok=True)
