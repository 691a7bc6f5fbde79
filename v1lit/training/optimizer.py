"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from v1lit.errors import OptionError, check_choices, check_fields
from v1lit.training.lightning_internals import unscale_before_step

FUSED_DEVICES = ("cpu", "cuda")
"""Devices on which one kernel does AdamW's whole step: on a CPU in a quarter of the time."""
EMBEDDINGS = ("embed", "lm_head")
"""Marks in the names of matrices whose rows are tokens or patches: not for Muon."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer with a warm-up and a schedule; the defaults are the published v1 settings."""

    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """`adamw8bit` keeps the two moments of large tensors in 8 bits (arXiv 2110.02861; the extra `adamw8bit`).
    `muon` orthogonalises the updates of hidden matrices, scaled as in arXiv 2502.16982 so that AdamW's
    learning rates fit, and leaves everything else to AdamW."""
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

    GROUP: ClassVar = "optimizer"

    def __post_init__(self) -> None:
        check_choices(self)
        check_fields(self, ["lr"], lambda rate: rate > 0, "it must be positive")
        check_fields(self, ["warmup"], _is_share, "it is a share of all steps, from 0 to 1")
        check_fields(self, ["final"], _is_share, "it is a share of the peak, from 0 to 1")


def _is_share(number: float) -> bool:
    return 0 <= number <= 1


class Together(Optimizer):
    """Several optimizers that step as one, each with its own parameters: Lightning drives one only."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([group for one in optimizers for group in one.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for one in self.optimizers:
            one.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [one.state_dict() for one in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for one, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            one.load_state_dict(state)
        # The schedule changes the groups of this optimizer: they must be the very same as the others'.
        self.param_groups = [group for one in self.optimizers for group in one.param_groups]


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> Optimizer:
    """The optimizer of the trainable parameters. Raises ValueError if there are none, or no bitsandbytes."""
    trainable = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    if not trainable:
        raise ValueError("no trainable parameter is left; remove a part from model.backbone.freeze")
    if config.name != "muon":
        return _adamw([parameter for _, parameter in trainable], config)
    hidden = [p for name, p in trainable if p.ndim == 2 and not any(mark in name for mark in EMBEDDINGS)]
    chosen = set(map(id, hidden))
    rest = [p for _, p in trainable if id(p) not in chosen]
    muon = Muon(hidden, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return Together([muon, _adamw(rest, config)])


def _adamw(parameters: list[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.name == "adamw8bit":
        return _adamw8bit(config, groups, options)
    fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
    optimizer = AdamW(groups, **options, fused=fused, foreach=not fused)
    unscale_before_step(optimizer)
    return optimizer


def _adamw8bit(config: OptimizerConfig, groups: list[dict[str, Any]], options: dict[str, Any]) -> Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        why = "it needs bitsandbytes: install it with pip install 'v1lit[adamw8bit]', or take adamw"
        raise OptionError("name", config.name, why, "model.optimizer") from error
    optimizer: Optimizer = AdamW8bit(groups, **options)
    return optimizer


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
