"""The configuration that is saved with a `PointAndCopyModel`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from v1lit.backbones.classes import named_class
from v1lit.backbones.registry import get_backbone
from v1lit.pointer.config import PointerConfig
from v1lit.revisit.config import RevisitConfig


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
        revisit: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, dict):
            values = {key: value for key, value in backbone_config.items() if key != "model_type"}
            made: PreTrainedConfig = named_class(get_backbone(family).model_class).config_class(**values)
            backbone_config = made
        # The base class hands its own attention implementation, still None, down to every sub-config that it
        # finds, and a decoder without one is not causal: so the backbone's config is attached afterwards.
        self.backbone_config: Any = None
        kwargs.pop("auto_map", None)  # of the code beside an export, which a model that is saved has not
        super().__init__(**kwargs)
        self.backbone_config = backbone_config
        self.family = family
        self.pointer = asdict(PointerConfig(**(pointer or {})))
        self.revisit = asdict(RevisitConfig(**(revisit or {})))
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
    def revisit_options(self) -> RevisitConfig:
        return RevisitConfig(**self.revisit)

    @property
    def image_token_id(self) -> int:
        return self.backbone_config.image_token_id

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        if self.backbone_config is None:
            return self
        return self.backbone_config.get_text_config(*args, **kwargs)
