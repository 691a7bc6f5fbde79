"""Weights in 4 bits, by bitsandbytes: packed when they first reach their device (arXiv 2305.14314)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from v1lit.backbones.adapters.layers import linear_layers
from v1lit.backbones.contract import Backbone

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

BLOCK, BLOCK_OF_SCALES = 64, 256
"""Weights that share a scale of 8 bits, and scales that share one of 32."""
BYTES = (4 + 8 / BLOCK + 32 / (BLOCK * BLOCK_OF_SCALES)) / 8
"""Of a weight in 4 bits, its share of the scales included."""


def pack_layers(model: PreTrainedModel, family: Backbone, parts: Iterable[str]) -> None:
    """Keep the linear layers of these parts in 4 bits (NF4, scales packed too), in place.

    Where there is a GPU, they are packed when they are moved there; else at once.
    """
    import bitsandbytes as bnb
    import torch

    for path in [path for part in parts for path in linear_layers(model, family, part)]:
        layer: Any = model.get_submodule(path)
        made = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=layer.weight.dtype,
            device="meta",
        )
        made.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, blocksize=BLOCK, quant_type="nf4", module=made
        )
        made.bias = layer.bias
        # On some CPUs it would change the scales of a weight in evaluation, for another kernel.
        made.support_avx512bf16_for_cpu = False
        model.set_submodule(path, made if torch.cuda.is_available() else made.to("cpu"))


class PackedLayers:
    """The layers of a model whose weights are in 4 bits."""

    def __init__(self, kinds: tuple[type, ...]) -> None:
        self._kinds = kinds

    @classmethod
    def of(cls, model: nn.Module) -> PackedLayers:
        """Those of a model; does not ask for the library where there are none."""
        names = {type(module).__name__ for module in model.modules()}
        if "Linear4bit" not in names:
            return cls(())
        import bitsandbytes as bnb

        return cls((bnb.nn.Linear4bit,))

    def __contains__(self, layer: object) -> bool:
        return isinstance(layer, self._kinds)

    def plain(self, layer: Any) -> nn.Linear:
        """A layer with the weights that the 4 bits stand for."""
        import bitsandbytes as bnb
        from torch import nn

        weight = layer.weight
        if weight.quant_state is None:  # not packed yet
            layer.to(weight.device)
            weight = layer.weight
        values = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        made = nn.Linear(1, 1, bias=layer.bias is not None, device="meta")
        made.in_features, made.out_features = layer.in_features, layer.out_features
        made.weight = nn.Parameter(values, requires_grad=False)
        made.bias = layer.bias
        return made


def numbers_in(parameter: torch.Tensor) -> int:
    """Numbers that a parameter stands for, packed or divided over ranks as it may be."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
