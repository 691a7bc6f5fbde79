"""A point-and-copy model that answers, and does nothing else: for `trust_remote_code=True`.

With the same weights it has the logits and the tokens of `v1lit.pointer.model.PointAndCopyModel`: where the
mechanism is the same, it is that class's own code. What v1lit has for training and for speed is left out:
packing, losses, adapters, ranks, other attention kernels, faster vision towers.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationMixin,
    LogitsProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from v1lit.backbones.cache_name import CACHE
from v1lit.backbones.deep_decoder import take_deep_features
from v1lit.backbones.image_blocks import padded_masks
from v1lit.pointer.head import PointerHead
from v1lit.pointer.joint_loss.reference import joint_logits
from v1lit.pointer.layout import TokenLayout
from v1lit.pointer.memory import PointerMemory, copy_values, embed_with_copies
from v1lit.pointer.output import PointAndCopyOutput
from v1lit.pointer.repetition import as_of_words
from v1lit.revisit.constant import Constant
from v1lit.revisit.multi_patch import Burst
from v1lit.revisit.run_ends import RunEnds
from v1lit.revisit.suppression import Suppression

FAMILIES = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava", "llava_next", "llava_onevision"),
    *("internvl", "gemma3"),
)
"""Backbones that are classes of transformers."""
STRATEGIES = ("point_and_copy", "multi_patch", "point_only", "coordinates", "text_only")
"""Strategies that need nothing of an image but its tokens, and no tokenizer while they generate."""
POINTING = ("point_and_copy", "multi_patch", "point_only")
WHOLE_IMAGES = ("gemma3",)
"""Families whose image tokens see each other in both directions."""


def refuse_unserved(family: str, revisit: dict[str, Any]) -> None:
    """Raise ValueError, naming it, for what this file has no code for."""
    if family not in FAMILIES:
        raise ValueError(
            f"remote code serves no {family}, whose model is no class of transformers; it serves "
            f"{', '.join(FAMILIES)}\nopen it with v1lit"
        )
    if revisit["name"] not in STRATEGIES:
        raise ValueError(
            f"remote code serves no strategy {revisit['name']}; it serves {', '.join(STRATEGIES)}\n"
            "open it with v1lit"
        )
    if revisit["control"] != "none" and revisit["control_when"] != "training":
        raise ValueError(
            f"remote code does not copy something else: revisit.control is {revisit['control']}\n"
            "open it with v1lit"
        )


class PointAndCopyConfig(PreTrainedConfig):
    """Configuration of the backbone, its family, and the options of pointing and looking again."""

    model_type = "v1lit"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012  transformers reads a class attribute

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        family: str = "qwen2_5_vl",
        pointer_start: int | None = None,
        pointer: dict[str, Any] | None = None,
        revisit: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, dict):
            values = dict(backbone_config)
            backbone_config = AutoConfig.for_model(values.pop("model_type"), **values)
        # Attached afterwards: the base class would hand its attention, still None, down to it.
        self.backbone_config: Any = None
        super().__init__(**kwargs)
        self.backbone_config = backbone_config
        self.family, self.pointer_start = family, pointer_start
        self.pointer, self.revisit = pointer or {}, revisit or {}
        if backbone_config is not None and kwargs.get("attn_implementation") is None:
            self._attn_implementation_internal = backbone_config._attn_implementation

    @property
    def image_token_id(self) -> int:
        token: int = self.backbone_config.image_token_id
        return token

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        if self.backbone_config is None:
            return self
        found: PreTrainedConfig = self.backbone_config.get_text_config(*args, **kwargs)
        return found


class PointAndCopyModel(PreTrainedModel, GenerationMixin):
    """A stock backbone that may point at its image tokens and copies what stands at their inputs.

    The token id `V + j` (`V = config.pointer_start`) is the pointer to the j-th image token of its row.
    Source: arXiv 2505.18842; jun297/v1, v1/modeling_v1.py, lines 127-545.
    """

    config_class = PointAndCopyConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")  # type: ignore[assignment]  # any sequence of names will do
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PointAndCopyConfig) -> None:
        super().__init__(config)
        refuse_unserved(config.family, config.revisit)
        self.backbone: Any = take_deep_features(
            AutoModelForImageTextToText.from_config(config.backbone_config)
        )
        self._is_stateful = self.backbone._is_stateful
        hidden = config.get_text_config().hidden_size
        deep = getattr(config.backbone_config.vision_config, "deepstack_visual_indexes", None) or []
        self.width = hidden * (1 + len(deep))
        self.looks = SimpleNamespace(**config.revisit["options"])
        """Options of the strategy that were given; those that were not have their defaults."""
        self.points = config.revisit["name"] in POINTING
        self.ends = getattr(self.looks, "end", "text") == "pointer"
        self.pointer_head = PointerHead(hidden, SimpleNamespace(**config.pointer), self.ends)  # type: ignore[arg-type]
        self.look: Any = Constant(hidden) if config.revisit["name"] == "point_only" else None
        self.post_init()

    def get_input_embeddings(self) -> Any:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_output_embeddings(new_embeddings)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PointerHead | Constant):
            module.init_weights(0.02)

    # ---- a pass -------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        image_embeds: Tensor | None = None,
        pointer_memory: PointerMemory | None = None,
        past_key_values: Any = None,
        return_dict: bool | None = None,
        **image_inputs: Any,
    ) -> PointAndCopyOutput:
        """The joint logits of every token, `[batch, tokens, V + pointers]`.

        Args:
            input_ids: `[batch, tokens]`; text, image placeholders, and pointers `V + j`.
            attention_mask: `[batch, tokens]`; 1 where there is a token.
            cache: of an earlier call, with its `pointer_memory`; before transformers 5.24 `past_key_values`.
            logits_to_keep: logits of the last N positions only, 0 for all.
            image_embeds: `[batch, pointers, width]`; input embeddings of the images, not to be computed.
            **image_inputs: the backbone's image tensors, such as `pixel_values`, for all images in order.
        """
        decoding: dict[str, Any] = {"attention_mask": attention_mask, "use_cache": use_cache}
        decoding[CACHE] = past_key_values if cache is None else cache
        text_ids, start = self._without_pointers(input_ids), self.config.pointer_start
        text = self._widened(self.get_input_embeddings()(text_ids))
        decoder = self.backbone.get_decoder()
        if pointer_memory is not None:
            embeds = copy_values(text, input_ids - start, pointer_memory)
            decoded = decoder(inputs_embeds=embeds, position_ids=position_ids, **decoding)
            return self._point(decoded, pointer_memory, logits_to_keep)
        layout = self._layout(input_ids)
        if position_ids is None:
            position_ids = self._positions(text_ids, attention_mask, image_inputs)
        values = self._encode(image_inputs, text) if image_embeds is None else image_embeds[layout.mask]
        copies = layout.check(values) if self.look is None else self._widened(self.look(values))
        copies = layout.with_ends(copies, self.pointer_head.end_input)
        embeds = embed_with_copies(text, values, layout, copies)
        if self.config.family in WHOLE_IMAGES and layout.blocks:
            config = self.config.get_text_config()
            decoding["attention_mask"] = padded_masks(config, embeds, attention_mask, layout.blocks)
        decoded = decoder(inputs_embeds=embeds, position_ids=position_ids, **decoding)
        keys = self._keys(decoded.last_hidden_state, values, layout)
        mask = layout.choice_mask if self.points else torch.zeros_like(layout.choice_mask)
        memory = PointerMemory(layout.pad_choices(keys), layout.pad_choices(copies), mask)
        return self._point(decoded, memory, logits_to_keep)

    def _point(self, decoded: Any, memory: PointerMemory, logits_to_keep: int) -> PointAndCopyOutput:
        states, head = decoded.last_hidden_state[:, -logits_to_keep:], self.pointer_head
        queries = head.project_queries(states).to(memory.keys.device)
        scores = head.scores(queries, memory.keys, memory.floor)
        vocabulary, start = self.get_output_embeddings()(states), self.config.pointer_start
        logits = joint_logits(vocabulary, scores, head.gate_values(states), start)
        named: dict[str, Any] = dict.fromkeys(("cache", CACHE), getattr(decoded, CACHE))
        return PointAndCopyOutput(logits=logits, pointer_memory=memory, **named)

    def _keys(self, states: Tensor, values: Tensor, layout: TokenLayout) -> Tensor:
        if self.config.pointer["key_source"] == "hidden":
            values = states.flatten(0, 1).to(layout.images.device).index_select(0, layout.images)
        keys = self.pointer_head.project_keys(values[:, : states.shape[-1]]).to(layout.images.device)
        return layout.with_ends(keys, self.pointer_head.end_key)

    def _layout(self, input_ids: Tensor) -> TokenLayout:
        start, image = self.config.pointer_start, self.config.image_token_id
        return TokenLayout.of(input_ids, image, start, ends=self.ends)

    def _without_pointers(self, input_ids: Tensor) -> Tensor:
        return input_ids.masked_fill(input_ids >= self.config.pointer_start, 0)

    def _widened(self, embeds: Tensor) -> Tensor:
        return F.pad(embeds, (0, self.width - embeds.shape[-1]))

    def _encode(self, image_inputs: dict[str, Any], like: Tensor) -> Tensor:
        """`[image_tokens, width]`: input embeddings of the image tokens, deep features behind them."""
        pixels = image_inputs.get("pixel_values")
        if pixels is None or not pixels.shape[0]:
            return like.new_zeros(0, self.width)
        output = self.backbone.get_image_features(**image_inputs, return_dict=True)
        deep = getattr(output, "deepstack_features", None) or []
        return torch.cat([_of_all_images(part) for part in (output.pooler_output, *deep)], dim=-1).to(like)

    def _positions(self, ids: Tensor, mask: Tensor | None, image_inputs: dict[str, Any]) -> Tensor:
        """Position ids, those of padding 0: `[batch, tokens]`, of the Qwen families `[3, batch, tokens]`."""
        mask = torch.ones_like(ids) if mask is None else mask
        count = getattr(self.backbone.model, "get_rope_index", None)
        if count is None:
            positions = mask.long().cumsum(-1) - 1
        else:
            kinds = (ids == self.config.image_token_id).int()
            grids = image_inputs.get("image_grid_thw")
            positions, _ = count(ids, mm_token_type_ids=kinds, image_grid_thw=grids, attention_mask=mask)
        return positions.masked_fill(mask == 0, 0)

    # ---- generation ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """As in transformers: greedy, sampling, beams. Left-pad batches and pass their `attention_mask`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        names = ("pixel_values", "image_grid_thw", "image_sizes", "batch_num_images")
        image_inputs = {name: kwargs.pop(name) for name in names if name in kwargs}
        settings = kwargs.get("generation_config") or self.generation_config
        start, image = self.config.pointer_start, self.config.image_token_id
        beams = kwargs.get("num_beams", settings.num_beams) or 1
        if beams > 1 and self.config.revisit["name"] == "multi_patch":
            raise ValueError("multi_patch cannot move rows between beams; generate with num_beams=1")
        kwargs = as_of_words(kwargs, settings, start, image)
        given = kwargs.get("logits_processor") or []
        kwargs["logits_processor"] = [*given, *self._steering(start, image)]
        if kwargs.get("image_embeds") is None:
            layout, text = self._layout(input_ids), self.get_input_embeddings().weight
            like = torch.empty(0, dtype=text.dtype, device=input_ids.device)
            kwargs["image_embeds"] = layout.pad(layout.check(self._encode(image_inputs, like)))
        if kwargs.get("position_ids") is None:
            ids = self._without_pointers(input_ids)
            kwargs["position_ids"] = self._positions(ids, attention_mask, image_inputs)
        return super().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def _steering(self, start: int, image: int) -> list[LogitsProcessor]:
        """What changes the logits of every step, as the strategy says."""
        if not self.points:
            return []
        steering: list[LogitsProcessor] = []
        suppress = getattr(self.looks, "suppress", "none")
        if suppress != "none":
            steering.append(Suppression(start, suppress == "region", image if self.ends else None))
        if self.ends:
            steering.append(RunEnds(start, image))
        if self.config.revisit["name"] == "multi_patch":
            most = getattr(self.looks, "max_copies", None)
            steering.append(Burst(start, getattr(self.looks, "threshold", 0.5), most))
        return steering

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        outputs.logits[..., self.config.image_token_id] = -torch.inf
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        if model_kwargs.get("use_cache", True):
            model_kwargs["pointer_memory"] = outputs.pointer_memory
        return model_kwargs


def _of_all_images(features: Any) -> Tensor:
    """`[image_tokens, hidden]`, of one tensor or of one for each image."""
    if isinstance(features, Tensor):
        return features.flatten(0, -2)
    return torch.cat([of_image.flatten(0, -2) for of_image in features])
