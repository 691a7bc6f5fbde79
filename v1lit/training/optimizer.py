"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from v1lit.errors import OptionError
from v1lit.parallel.tensors import whole_shape
from v1lit.training.averaging import Averages
from v1lit.training.config import OptimizerConfig
from v1lit.training.groups import Place
from v1lit.training.lightning_internals import unscale_before_step

FUSED_DEVICES = ("cpu", "cuda")
"""Devices on which one kernel does AdamW's whole step: on a CPU in a quarter of the time."""
EMBEDDINGS = ("embed", "lm_head")
"""Marks in the names of matrices whose rows are tokens or patches: not for Muon."""
Grouped = dict[Place, list[tuple[str, nn.Parameter]]]
"""Parameters that learn, with their names, by their place."""


class Together(Optimizer):
    """Several optimizers that step as one, each with its own parameters: Lightning drives one only.

    Args:
        optimizers: in the order in which they step.
        averages: steps after them; its groups are none that learn.
    """

    def __init__(self, optimizers: list[Optimizer], averages: Averages | None = None) -> None:
        self.optimizers = [*optimizers, *([] if averages is None else [averages])]
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict[str, Any]]:
        learning = (one for one in self.optimizers if not isinstance(one, Averages))
        return [group for optimizer in learning for group in optimizer.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        # The schedule changes the groups of this optimizer: they must be the very same as the others'.
        self.param_groups = self._groups()


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    places: Mapping[str, Place] | None = None,
) -> Optimizer:
    """The optimizer of the trainable parameters.

    Args:
        named_parameters: of the model, tied ones under one name or under all.
        config: its options.
        places: of the trainable parameters by name; all are in one when not given.

    Raises ValueError if none is trainable, or there is no bitsandbytes; OptionError for weights of which no
    average can be kept.
    """
    trainable = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    if not trainable:
        raise ValueError(
            "no trainable parameter is left; remove a part from model.backbone.freeze, or a pattern from "
            "model.freeze"
        )
    by_place: Grouped = {}
    first = {id(parameter): name for name, parameter in reversed(trainable)}  # of tied ones
    for name, parameter in trainable:
        if first[id(parameter)] == name:
            by_place.setdefault((places or {}).get(name, Place()), []).append((name, parameter))
    optimizers = _learning(by_place, config)
    if config.ema_decay is not None:
        return Together(optimizers, Averages(trainable, config.ema_decay))
    return optimizers[0] if len(optimizers) == 1 else Together(optimizers)


def _learning(by_place: Grouped, config: OptimizerConfig) -> list[Optimizer]:
    if config.name != "muon":
        return [_adamw(by_place, config)]
    hidden: list[dict[str, Any]] = []
    rest: Grouped = {}
    for place, named in by_place.items():
        chosen = [p for name, p in named if p.ndim == 2 and not any(mark in name for mark in EMBEDDINGS)]
        taken = set(map(id, chosen))
        rest[place] = [(name, p) for name, p in named if id(p) not in taken]
        options = {"lr": place.rate(config), "weight_decay": place.weight_decay(config)}
        hidden += [{"params": chosen, **options}] if chosen else []
    muon = Muon(hidden, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, _adamw(rest, config)]


def _adamw(by_place: Grouped, config: OptimizerConfig) -> Optimizer:
    groups: list[dict[str, Any]] = []
    for place, named in by_place.items():
        matrices = [p for _, p in named if len(whole_shape(p)) >= 2]
        others = [p for _, p in named if len(whole_shape(p)) < 2]
        rate = place.rate(config)
        groups += [
            {"params": matrices, "lr": rate, "weight_decay": place.weight_decay(config)},
            {"params": others, "lr": rate, "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.name == "adamw8bit":
        return _adamw8bit(config, groups, options)
    parameters = [p for group in groups for p in group["params"]]
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
