"""Which backbone, which weights, how loaded: the part of a recipe under `model.backbone`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args

from v1lit.errors import check_choices
from v1lit.grounding.patch_map import Views
from v1lit.paths import expand_fields

Part = Literal["vision", "projector", "language", "pointer"]
Layered = Literal["language", "vision"]
"""Parts that are made of layers, each of which can be recomputed or compiled."""
Attention = Literal["auto", "sdpa", "flash_attention_2", "varlen", "xformers", "flex_attention", "eager"]
LAYERED: tuple[str, ...] = get_args(Layered)
VIEWS: tuple[str, ...] = get_args(Views)
ATTENTION: tuple[str, ...] = get_args(Attention)


Options = TypeVar("Options")


def as_options(kind: type[Options], value: Options | Mapping[str, Any] | None) -> Options:
    """Options as their dataclass, also of the plain data that checkpoints hold; defaults for None."""
    if isinstance(value, kind):
        return value
    assert value is None or isinstance(value, Mapping)
    return kind(**(value or {}))


@dataclass
class BackboneConfig:
    """A backbone as a recipe names it; raises OptionError for values that no backbone could take."""

    name: str = "qwen2_5_vl"
    """Registered backbone: `qwen2_5_vl`, `qwen2_vl`, `qwen3_vl`, `qwen3_5`, `llava`, `internvl`, or one of a
    package of yours."""
    weights: str = "tiny"
    """`tiny` (small, randomly initialised, no download), a hub id or a local folder."""
    tiny: dict[str, Any] = field(default_factory=dict)
    """Sizes of the tiny version that differ from its defaults, such as `{hidden_size: 128}`; without meaning
    for other weights."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Type of the loaded weights; `auto` takes the checkpoint's own."""
    attention: Attention = "auto"
    """How tokens attend inside a segment of a packed row; `auto` is the fastest that runs here. The vision
    tower and generation follow with `flash_attention_2` and `eager`; else they use sdpa."""
    freeze: list[Part] = field(default_factory=list)
    """Parts that are not trained."""
    gradient_checkpointing: list[Layered] = field(default_factory=list)
    """Parts whose layers are computed again in the backward pass and keep only their inputs: a third more
    work for much less memory."""
    compile: list[Layered] = field(default_factory=list)
    """Parts whose layers go through `torch.compile`, in training only."""
    image: dict[str, Any] = field(default_factory=dict)
    """Options of the image processor, such as `min_pixels`, `max_pixels` or `crop_to_patches`, and
    `max_side`, the cap of an image's longer side in pixels, applied before the processor."""
    views: Views = "all"
    """Image tokens that stand for a region where several see the same pixel: all, those of tiles, or those of
    the overview."""

    GROUP: ClassVar[str] = "backbone"
    PATHS: ClassVar[tuple[str, ...]] = ("weights",)

    def __post_init__(self) -> None:
        expand_fields(self)
        check_choices(self)
