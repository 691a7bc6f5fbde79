"""`PointAndCopyModel`: any supported backbone with a pointer head, as one transformers model."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from v1lit.backbones.base import Backbone
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.load import freeze, load_backbone, refuse_incomplete
from v1lit.backbones.registry import get_backbone
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.head import PointerHead
from v1lit.pointer.loss import LossInputs, LossTerms, first_pointers, joint_logits, pointer_loss
from v1lit.pointer.memory import ImageSlots, PointerMemory, copy_values, embed_with_copies

IGNORE = -100


class PointAndCopyConfig(PreTrainedConfig):
    """Configuration of a `PointAndCopyModel`: the backbone's own, its family and the pointer options."""

    model_type = "v1lit"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012  transformers reads a class attribute

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        family: str = "qwen2_5_vl",
        pointer_start: int | None = None,
        pointer: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, dict):
            values = dict(backbone_config)
            backbone_config = AutoConfig.for_model(values.pop("model_type"), **values)
        # The base class hands its own attention implementation, still None, down to every sub-config that it
        # finds, and a decoder without one is not causal: so the backbone's config is attached afterwards.
        self.backbone_config: Any = None
        super().__init__(**kwargs)
        self.backbone_config = backbone_config
        self.family = family
        self.pointer = asdict(PointerConfig(**(pointer or {})))
        self.pointer_start = pointer_start
        if backbone_config is not None:
            if kwargs.get("attn_implementation") is None:
                self._attn_implementation_internal = backbone_config._attn_implementation
            vocabulary = backbone_config.get_text_config().vocab_size
            self.pointer_start = vocabulary if pointer_start is None else pointer_start
            if not 0 < self.pointer_start <= vocabulary:
                raise ValueError(
                    f"pointer_start is {self.pointer_start}; it must lie between 1 and the vocabulary's "
                    f"{vocabulary}"
                )

    @property
    def pointer_options(self) -> PointerConfig:
        return PointerConfig(**self.pointer)

    @property
    def image_token_id(self) -> int:
        return self.backbone_config.image_token_id

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        if self.backbone_config is None:
            return self
        return self.backbone_config.get_text_config(*args, **kwargs)


@dataclass
class PointAndCopyOutput(ModelOutput):
    """What `PointAndCopyModel.forward` gives."""

    loss: Tensor | None = None
    """Mean over supervised positions, `[]`; with labels only."""
    logits: Tensor | None = None
    """float32 `[batch, tokens, V + pointers]`, lowest float for absent pointers; None with labels."""
    losses: dict[str, Tensor] | None = None
    """Parts of the loss; their sum is `loss`."""
    terms: LossTerms | None = None
    """The same as sums and counts, for exact averages over several batches."""
    targets: Tensor | None = None
    """Labels of the supervised positions, in row-major order, `[positions]`."""
    predictions: Tensor | None = None
    """Most likely id at each of them, `[positions]`."""
    past_key_values: Cache | None = None
    pointer_memory: PointerMemory | None = None


class PointAndCopyModel(PreTrainedModel, GenerationMixin):
    """A backbone that may point at its image tokens and copies their input embeddings into the stream.

    The token id `V + j` (`V = config.pointer_start`) is the pointer to the j-th image token of the row,
    counted over all its images. arXiv 2505.18842.
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
        if backbone.gradient_checkpointing:
            with warnings.catch_warnings():
                # Its new name is younger than the oldest transformers that v1lit runs with.
                warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is deprecated")
                model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

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

        Raises ValueError, naming them, for weights that are missing, unexpected or of another shape.
        """
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        refuse_incomplete(info, str(folder))
        return (model, info) if with_info else model

    @classmethod
    def from_published(cls, folder: str | Path, **kwargs: Any) -> PointAndCopyModel:
        """Open a checkpoint in the layout of the published v1-7B. See `v1lit.pointer.published`."""
        from v1lit.pointer.published import load_published

        return load_published(Path(folder), **kwargs)

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
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        image_values: Tensor | None = None,
        pointer_memory: PointerMemory | None = None,
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

        Raises ValueError for image inputs that the backbone does not take, for features that do not fit the
        placeholders and for pointers to image tokens that a row does not have.
        """
        self._check_image_inputs(image_inputs)
        first = past_key_values is None or past_key_values.get_seq_length() == 0
        if labels is not None:
            use_cache = False
        if first:
            slots = ImageSlots.of(input_ids, self.config.image_token_id)
            safe_ids = self._without_pointers(input_ids)
            if image_values is None:
                image_values = self._image_values(slots, image_inputs, input_ids)
            text = self.get_input_embeddings()(safe_ids)
            embeddings = embed_with_copies(text, image_values, slots, input_ids, self.config.pointer_start)
            if position_ids is None:
                position_ids = self.family.positions(self.backbone, safe_ids, attention_mask, **image_inputs)
        else:
            if pointer_memory is None:
                raise ValueError(
                    "going on from a cache needs pointer_memory, as the forward pass that filled it gave it"
                )
            embeddings = self._embed_next(input_ids, pointer_memory)

        decoded = self.backbone.get_decoder()(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        states = decoded.last_hidden_state
        if first:
            assert image_values is not None
            pointer_memory = self._remember(states, image_values, slots)
        assert pointer_memory is not None
        if labels is not None:
            return self._loss(states, labels, pointer_memory)
        if logits_to_keep:
            states = states[:, -logits_to_keep:]
        return PointAndCopyOutput(
            logits=self._logits(states, pointer_memory),
            past_key_values=decoded.past_key_values,
            pointer_memory=pointer_memory,
        )

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

    def _image_values(self, slots: ImageSlots, image_inputs: dict[str, Any], input_ids: Tensor) -> Tensor:
        """Input embeddings of the image tokens, `[batch, pointers, hidden]`."""
        pixels = image_inputs.get(self.family.image_inputs[0])
        if pixels is None or pixels.shape[0] == 0:
            return slots.pad(
                self.get_input_embeddings().weight.new_zeros(0, self.config.get_text_config().hidden_size)
            )
        features = self.family.encode_images(self.backbone, **image_inputs)
        return slots.pad(features.to(self.get_input_embeddings().weight.dtype))

    def _embed_next(self, input_ids: Tensor, memory: PointerMemory) -> Tensor:
        text = self.get_input_embeddings()(self._without_pointers(input_ids))
        if memory.values.shape[1] == 0:
            return text
        indices = (input_ids - self.config.pointer_start).clamp(min=0)
        is_pointer = (input_ids >= self.config.pointer_start)[..., None]
        return torch.where(is_pointer, copy_values(memory.values, indices), text)

    def _remember(self, states: Tensor, image_values: Tensor, slots: ImageSlots) -> PointerMemory:
        source = image_values if self.pointer_options.key_source == "embedding" else slots.gather(states)
        return PointerMemory(self.pointer_head.project_keys(source), image_values, slots.mask)

    def _pointer_logits(self, states: Tensor, memory: PointerMemory) -> Tensor:
        return self.pointer_head.scores(self.pointer_head.project_queries(states), memory.keys, memory.mask)

    def _logits(self, states: Tensor, memory: PointerMemory) -> Tensor:
        vocabulary = self.get_output_embeddings()(states)
        return joint_logits(
            vocabulary,
            self._pointer_logits(states, memory),
            self.pointer_head.gate_values(states),
            self.config.pointer_start,
        )

    def _weights(self, labels: Tensor, supervised: Tensor) -> Tensor | None:
        """Weights of the supervised positions, `[positions]`; None where all are 1."""
        weight = self.pointer_options.first_pointer_weight
        if weight == 1.0:
            return None
        first = first_pointers(labels, self.config.pointer_start)[supervised]
        return torch.where(first, weight, 1.0)

    def _loss(self, states: Tensor, labels: Tensor, memory: PointerMemory) -> PointAndCopyOutput:
        supervised = labels[:, 1:] != IGNORE
        states = states[:, :-1]
        inputs = LossInputs(
            hidden=states[supervised],
            head=self.get_output_embeddings().weight,
            pointer_logits=self._pointer_logits(states, memory)[supervised],
            labels=labels[:, 1:][supervised],
            gate=self.pointer_head.gate_values(states[supervised]),
            weights=self._weights(labels[:, 1:], supervised),
        )
        terms = pointer_loss(inputs, self.config.pointer_start, self.pointer_options)
        loss, parts = terms.total(self.pointer_options.z_weight)
        return PointAndCopyOutput(
            loss=loss, losses=parts, terms=terms, targets=inputs.labels, predictions=terms.predictions
        )

    # ------------------------------------------------------------------ generate

    @torch.no_grad()
    def generate(  # type: ignore[override]  # `inputs` is named, and needed, here
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """As in transformers: greedy, sampling, beams. Left-pad batches and pass their `attention_mask`.

        Images are encoded once, here, into one row of values per sequence, so that expanding rows into beams
        keeps every row with its own images. The image placeholder itself is never generated.
        """
        image_inputs = {name: kwargs.pop(name) for name in self.family.image_inputs if name in kwargs}
        slots = ImageSlots.of(input_ids, self.config.image_token_id)
        safe_ids = self._without_pointers(input_ids)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        kwargs["suppress_tokens"] = [*(kwargs.get("suppress_tokens") or []), self.config.image_token_id]
        if kwargs.get("image_values") is None:
            kwargs["image_values"] = self._image_values(slots, image_inputs, input_ids)
        if kwargs.get("position_ids") is None:
            kwargs["position_ids"] = self.family.positions(
                self.backbone, safe_ids, attention_mask, **image_inputs
            )
        return super().generate(  # type: ignore[misc]  # the mixin types `self` as a protocol of its own
            input_ids=input_ids, attention_mask=attention_mask, **kwargs
        )

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
