"""Which backbone, which weights, how loaded: the part of a recipe under ``model.backbone``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar, Literal, TypeVar

from v1lit.paths import expand_fields

PARTS = ("vision", "projector", "language", "pointer")
LAYERED = ("language", "vision")
"""Parts that are made of layers, each of which can be recomputed or compiled."""
DTYPES = ("float32", "bfloat16", "float16", "auto")
VIEWS = ("all", "tiles", "overview")
ATTENTION = ("auto", "sdpa", "flash_attention_2", "varlen", "xformers", "flex_attention", "eager")


Options = TypeVar("Options")


def as_options(kind: type[Options], value: Options | Mapping[str, Any] | None) -> Options:
    """Options as their dataclass, also of the plain data that checkpoints hold; defaults for None."""
    if isinstance(value, kind):
        return value
    assert value is None or isinstance(value, Mapping)
    return kind(**(value or {}))


def explain_unknown(what: str, given: object, allowed: Iterable[str]) -> str:
    """One line for a name that does not exist: what was given, the nearest match, what is allowed."""
    names = sorted(allowed)
    near = get_close_matches(str(given), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what} {given!r}{hint}; allowed: {', '.join(names)}"


@dataclass
class BackboneConfig:
    """A backbone as a recipe names it. Raises ``ValueError`` for values that no backbone could take.

    Args:
        name: Registered backbone, such as ``qwen2_5_vl``, ``qwen2_vl``, ``llava`` or ``internvl``.
        weights: ``tiny`` (small, randomly initialised, no download), a hub id or a local folder.
        tiny: Sizes of the tiny version that differ from its defaults, such as ``{hidden_size: 128}``; without
            meaning for other weights.
        dtype: Type of the loaded weights; ``auto`` takes the checkpoint's own.
        attention: How tokens attend inside a segment of a packed row: ``auto`` (the fastest that runs here),
            ``sdpa``, ``flash_attention_2``, ``varlen``, ``xformers``, ``flex_attention`` or ``eager``. The
            vision tower and generation follow with ``flash_attention_2`` and ``eager``; else they use sdpa.
        freeze: Parts that are not trained: ``vision``, ``projector``, ``language``, ``pointer``.
        gradient_checkpointing: Parts (``language``, ``vision``) whose layers are computed again in the
            backward pass and keep only their inputs: a third more work for much less memory.
        compile: Parts (``language``, ``vision``) whose layers go through ``torch.compile``, in training only.
        image: Options of the image processor, such as ``min_pixels``, ``max_pixels`` or ``crop_to_patches``,
            and ``max_side``, the cap of an image's longer side in pixels, applied before the processor.
        views: Where several image tokens see the same pixel (tiles and thumbnail), the ones that stand
            for a region: ``all``, ``tiles`` or ``overview``.
    """

    name: str = "qwen2_5_vl"
    weights: str = "tiny"
    tiny: dict[str, Any] = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attention: str = "auto"
    freeze: list[str] = field(default_factory=list)
    gradient_checkpointing: list[Literal["language", "vision"]] = field(default_factory=list)
    compile: list[Literal["language", "vision"]] = field(default_factory=list)
    image: dict[str, Any] = field(default_factory=dict)
    views: Literal["all", "tiles", "overview"] = "all"

    PATHS: ClassVar[tuple[str, ...]] = ("weights",)

    def __post_init__(self) -> None:
        expand_fields(self)
        if self.dtype not in DTYPES:
            raise ValueError(explain_unknown("dtype", self.dtype, DTYPES))
        if self.attention not in ATTENTION:
            raise ValueError(explain_unknown("attention", self.attention, ATTENTION))
        if self.views not in VIEWS:
            raise ValueError(explain_unknown("views", self.views, VIEWS))
        for part in self.freeze:
            if part not in PARTS:
                raise ValueError(explain_unknown("part in freeze", part, PARTS))
        for name in ("gradient_checkpointing", "compile"):
            for part in getattr(self, name):
                if part not in LAYERED:
                    raise ValueError(explain_unknown(f"part in {name}", part, LAYERED))
