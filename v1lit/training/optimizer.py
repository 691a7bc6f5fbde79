"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a warm-up and a schedule; the defaults are the published v1 settings."""

    lr: float = 3e-5
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Applied to matrices only, never to biases, norms and other vectors."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up, down to `final` times the peak at the last step."""
    warmup: float = 0.03
    """Share of all steps spent rising linearly from zero to the peak."""
    final: float = 0.0
    """Learning rate at the last step, as a share of the peak."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr is {self.lr}; it must be positive")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"optimizer.warmup is {self.warmup}; it is a share of all steps, from 0 to 1")
        if not 0 <= self.final <= 1:
            raise ValueError(f"optimizer.final is {self.final}; it is a share of the peak, from 0 to 1")


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay for matrices only."""
    trainable = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("no trainable parameter is left; remove a part from model.backbone.freeze")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, foreach=True)


def learning_rate_factor(step: int, total: int, config: OptimizerConfig) -> float:
    """Share of the peak learning rate at `step` (optimizer steps, from 0) of `total`."""
    warmup = math.ceil(config.warmup * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    shape = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final + (1.0 - config.final) * shape
