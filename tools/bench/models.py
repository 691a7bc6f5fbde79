"""Models with random weights in any size, and the training step that all contenders share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from v1lit.backbones.registry import get_backbone
from v1lit.backbones.tiny import tiny_tokenizer
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.model_config import PointAndCopyConfig

FAMILY = "qwen2_5_vl"
LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Size:
    """Of a Qwen2.5-VL."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_intermediate: int
    full_attention_layers: tuple[int, ...]
    tied: bool


PUBLISHED_CASE = Size(152_064, 256, 2, 4, 2, 512, 64, 2, 2, 128, (1,), tied=False)
"""79 million parameters, 78 of them in the embedding table and the head."""
TINY = Size(2_048, 64, 2, 4, 2, 128, 32, 2, 2, 64, (1,), tied=False)
"""For `--quick`."""
TWO_BILLION = Size(151_936, 1536, 28, 12, 2, 8960, 1280, 32, 16, 3420, (7, 15, 23, 31), tied=True)
"""The language model of Qwen2-VL-2B behind the vision tower of Qwen2.5-VL."""


def make_backbone(size: Size, device: torch.device | str, dtype: torch.dtype) -> PreTrainedModel:
    """The stock transformers model with random weights, made on the device; seed torch before."""
    family = get_backbone(FAMILY)
    config = family.tiny_config(
        tiny_tokenizer(family.chat.stop, family.chat.single),
        hidden_size=size.hidden,
        layers=size.layers,
        heads=size.heads,
        kv_heads=size.kv_heads,
        intermediate_size=size.intermediate,
        vision_hidden_size=size.vision_hidden,
        vision_layers=size.vision_layers,
        vision_heads=size.vision_heads,
        vision_intermediate_size=size.vision_intermediate,
        full_attention_layers=list(size.full_attention_layers),
        tie_word_embeddings=size.tied,
    )
    config.text_config.vocab_size = size.vocabulary
    cls = transformers.Qwen2_5_VLForConditionalGeneration
    with torch.device(device):
        model: PreTrainedModel = cls._from_config(config, attn_implementation="sdpa", dtype=dtype)
    return model.train()


def make_model(size: Size, device: torch.device | str, dtype: torch.dtype) -> PointAndCopyModel:
    """The same with a pointer head, as v1lit makes it."""
    backbone = make_backbone(size, device, dtype)
    config = PointAndCopyConfig(backbone.config, family=FAMILY, pointer=asdict(PointerConfig()))
    model = PointAndCopyModel(config, backbone=backbone)
    model.init_pointer()
    model.pointer_head.to(device=device, dtype=dtype)
    return model.train()


def set_pointer_options(model: PointAndCopyModel, **options: Any) -> None:
    """Change options of the pointer plug-in that only the loss reads."""
    model.pointer_options = replace(model.pointer_options, **options)


def make_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW in one kernel per tensor: it needs no memory but its state."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)


def training_step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Forget the gradients, forward, backward, update."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def settle(optimizer: torch.optim.Optimizer) -> None:
    """Bring weights, gradients and optimizer state into memory, above which a step's peak is counted."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            # Unlike that of `zeros`, memory that was written to is really there.
            parameter.grad = torch.empty_like(parameter).fill_(0)
    optimizer.step()
