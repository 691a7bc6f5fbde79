"""One `attention` option: which kernel attends inside packed rows, and how it gets into a stock decoder.

transformers looks up the attention function of a model by the name in its config. The text decoder gets a
name of ours whose function attends per segment when the decoder is called with `segments=`, and otherwise
hands on to the stock function. The vision tower keeps the stock one.

Source: transformers, modeling_utils.py, `AttentionInterface`; masking_utils.py, `AttentionMaskInterface`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from v1lit.backbones.attention_kernels import AUTO, KERNELS, Attend
from v1lit.backbones.config import ATTENTION
from v1lit.backbones.segments import Segments
from v1lit.errors import OptionError, name_allowed

PREFIX = "v1lit_"


class Choice(NamedTuple):
    """The kernel that was chosen."""

    name: str
    """Its name in `KERNELS`."""
    line: str
    """What was chosen and why not another, for the log."""


def choose_attention(
    wanted: str, device: torch.device | str, dtype: torch.dtype, causal: bool = True
) -> Choice:
    """The kernel for packed rows: `wanted`, or for "auto" the first of `AUTO` that trains on the device.

    `dtype` is the one that attention computes in, under autocast that of autocast; `causal` is the model's
    `is_causal`. Raises ValueError for a name that does not exist, and for a kernel that does not run on the
    device or cannot compute what the model needs, with the reason.
    """
    device = torch.device(device)
    if wanted not in ATTENTION:
        raise OptionError("attention", wanted, name_allowed(wanted, ATTENTION), "model.backbone")
    refused: list[str] = []
    for name in AUTO if wanted == "auto" else (wanted,):
        reason = KERNELS[name].reason(device, dtype, causal)
        if reason is None:
            why = "as given" if name == wanted else "; ".join(refused)
            return Choice(name, f"attention: {name}{f' ({why})' if why else ''}")
        refused.append(f"{name}: {reason}")
    usable = [name for name, kernel in KERNELS.items() if kernel.reason(device, dtype, causal) is None]
    raise ValueError(
        f"model.backbone.attention={wanted}: {wanted} {reason}; on this {device.type} device in "
        f"{str(dtype).removeprefix('torch.')} these run: {', '.join(usable)}, or auto for the fastest of them"
    )


@torch.compiler.disable
def attend_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None = None
) -> Tensor:
    """Attention inside each segment, none across, by the kernel that `segments` names.

    query `[tokens, heads, head dim]`, key and value `[tokens, kv heads, head dim]`; heads is a multiple of kv
    heads; window: how many tokens one sees back, itself counted. Returns `[tokens, heads, head dim]`. Raises
    ValueError if the segments do not fill the row, and for a kernel that knows no windows or image blocks.
    """
    if not query.shape[0] == key.shape[0] == value.shape[0] == segments.tokens:
        raise ValueError(
            f"segments of {segments.tokens} tokens for a query of {query.shape[0]} and keys of {key.shape[0]}"
        )
    if window is not None and window >= segments.longest:
        window = None
    return KERNELS[segments.attention].attend(query, key, value, segments, scale, window)


# ---- in transformers --------------------------------------------------------------------------------------


def stock_attention(name: str, blocks: bool = False) -> str:
    """The implementation of transformers beside an `attention` option, for the vision tower and generation.

    "auto" is sdpa, until the device is known: see `set_attention`. With image `blocks` sdpa takes the place
    of flash attention, which transformers refuses for them. Raises ValueError if it could not be loaded.
    """
    kernel = KERNELS["sdpa" if name == "auto" else name]
    if blocks and kernel.stock == "flash_attention_2":
        return "sdpa"
    if kernel.stock == "flash_attention_2":
        reason = kernel.missing() or (None if torch.cuda.is_available() else "needs a CUDA GPU")
        if reason is not None:
            raise ValueError(f"model.backbone.attention={name}: {name} {reason}; use auto or sdpa")
    return kernel.stock


def set_attention(model: PreTrainedModel, name: str, blocks: bool = False) -> None:
    """Switch a loaded backbone to what belongs to a chosen kernel: vision tower, generation, text decoder."""
    model.set_attn_implementation(stock_attention(name, blocks))
    use_segments(model.config.get_text_config())


def use_segments(text_config: PreTrainedConfig) -> None:
    """Let the text decoder with this config take `segments=`; without it, it computes as before.

    The vision tower has a config of its own and is not touched. Raises ValueError for an attention
    implementation that `stock_attention` never returns.
    """
    stock = (text_config._attn_implementation or "sdpa").removeprefix(PREFIX)
    if stock not in STOCK:
        raise ValueError(f"packed rows need one of {', '.join(STOCK)} in the config, not {stock}")
    text_config._attn_implementation = PREFIX + stock


def packed_decoder_arguments(segments: Segments, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the decoder is called with, beside embeddings and positions, to attend inside segments.

    The mask is a single NaN: it is never read, and a layer that does not know `segments` and takes the mask
    instead computes NaN, not a row whose examples see each other.
    """
    poison = torch.full((1, 1, 1, 1), float("nan"), device=device, dtype=dtype)
    return {"attention_mask": poison, "segments": segments, "use_cache": False}


def _attention(
    stock: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    segments: Segments | None = None,
    attend: Attend = attend_segments,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """As transformers calls it: `[batch, heads, tokens, head dim]` to `[batch, tokens, heads, head dim]`.

    segments: of a packed row. attend: computes it where ranks share its tokens.
    """
    if segments is None:
        return stock(module, query, key, value, attention_mask, *args, **options)
    _refuse(options, query)
    # Under autocast, rotation leaves queries and keys in float32; values come straight from a product.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return attend(q, k, v, segments, scale, options.get("sliding_window"))[None], None


def _refuse(options: dict[str, Any], query: Tensor) -> None:
    """Raise ValueError for what no kernel computes, rather than leave it out silently."""
    if query.shape[0] != 1:
        raise ValueError(f"packed examples are one row, not {query.shape[0]}")
    wrong = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if options.get("dropout"):
        wrong.append("attention_dropout")
    if wrong:
        raise ValueError(f"packed rows cannot be computed with this model's {', '.join(wrong)}")


def _stock_sdpa(module: nn.Module, *args: Any, **options: Any) -> Any:
    return AttentionInterface()["sdpa"](module, *args, **options)


def _stock_eager(module: nn.Module, *args: Any, **options: Any) -> Any:
    # Every model file of transformers has its own.
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **options)


def _stock_flash(module: Any, *args: Any, **options: Any) -> Any:
    # This one asks the config once more which of several flash packages is meant.
    config = module.config
    ours, config._attn_implementation = config._attn_implementation, "flash_attention_2"
    try:
        return AttentionInterface()["flash_attention_2"](module, *args, **options)
    finally:
        config._attn_implementation = ours


STOCK: dict[str, Callable[..., Any]] = {
    "sdpa": _stock_sdpa,
    "flash_attention_2": _stock_flash,
    "eager": _stock_eager,
}
for _name, _function in STOCK.items():
    AttentionInterface.register(PREFIX + _name, partial(_attention, _function))
    AttentionMaskInterface.register(PREFIX + _name, AttentionMaskInterface()[_name])
