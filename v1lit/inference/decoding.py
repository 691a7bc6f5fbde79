"""How decoding steps are computed: with a cache that grows or one of fixed size, as they are or compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import CompileConfig

from v1lit.errors import OptionError
from v1lit.pointer.model import PointAndCopyModel


@dataclass(frozen=True)
class Decoding:
    """Options of every generation of a `Predictor`; the tokens are the same with all of them."""

    static_cache: bool = False
    """A KV cache of the final size from the start, instead of one that grows token by token."""
    compiled: bool = False
    """A step compiled by torch, once for the first sizes and once for all others; with a static cache."""

    def options(self, model: PointAndCopyModel) -> dict[str, Any]:
        """What transformers' `generate` takes. Raises OptionError for a model that cannot do it."""
        if not (self.static_cache or self.compiled):
            return {}
        name = "compiled" if self.compiled else "static_cache"
        if model.family.whole_images:
            family = model.config.family
            why = f"images of {family} see themselves whole, which masks of a static cache leave out"
            raise OptionError(name, True, why)
        if self.compiled and len(set((getattr(model, "hf_device_map", None) or {"": 0}).values())) > 1:
            raise OptionError(name, True, "weights on several devices are moved by accelerate between steps")
        options: dict[str, Any] = {"cache_implementation": "static"}
        if self.compiled:
            options["compile_config"] = compile_config(model.device)
        return options


def compile_config(device: torch.device) -> CompileConfig:
    """One graph for a whole step; on a GPU it is replayed by CUDA graphs."""
    config = CompileConfig(mode="reduce-overhead" if device.type == "cuda" else "default", fullgraph=True)
    config._compile_all_devices = True  # type: ignore[assignment]  # else transformers skips a CPU, and only warns
    return config
