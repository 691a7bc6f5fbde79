"""What a trial costs before it has run: tokens and operations of a step, bytes on the disk, seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from v1lit.backbones.adapters.config import AdapterConfig
from v1lit.backbones.adapters.folder import resolved
from v1lit.backbones.config import BackboneConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.errors import OptionError
from v1lit.plan.architecture import model_config, model_on_meta
from v1lit.plan.setting import learned_type, moment_bytes, strategy_of
from v1lit.pointer.adapted import kept_names
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.sweep.config import Budget
from v1lit.training.config import OptimizerConfig
from v1lit.training.flops import ModelFlops, WorkSum
from v1lit.training.peak import find_peak, product_kind

SAMPLE = 32
"""Micro-batches by which a step's cost is known."""
REACHED = 0.4
"""Share of the device's peak at which trials are taken to compute, as in `v1lit plan`."""


@dataclass(frozen=True)
class StepCost:
    """What one optimizer step costs, on average over the first micro-batches, all devices together."""

    examples: float
    tokens: float
    """Without padding."""
    flops: float
    """As `train/mfu` counts them."""

    def steps(self, budget: Budget) -> int:
        """Optimizer steps that use up a budget of tokens or flops most nearly, at least one."""
        each = self.tokens if budget.kind == "tokens" else self.flops
        return max(1, round(budget.amount / each))


class TrialCost:
    """The model of a trial without its weights, by which its cost is reckoned.

    Args:
        config: the parsed recipe.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config, model = config, config["model"]
        self.optimizer = OptimizerConfig(**model["optimizer"])
        made_of = resolved(BackboneConfig(**model["backbone"]), AdapterConfig(**model["adapter"]))
        self.backbone, self.adapter, _ = made_of
        self.model: PointAndCopyModel = model_on_meta(
            model_config(self.backbone),
            self.backbone,
            PointerConfig(**model["pointer"]),
            RevisitConfig(**model["revisit"]),
            model["freeze"],
            self.adapter,
        )

    def of_step(self, data: V1DataModule) -> StepCost:
        """The cost of a step, from the first training examples, which must be there already.

        Raises ValueError for a model whose operations are not known, and OptionError where the recipe does
        not say how many devices a step has.
        """
        flops, work = ModelFlops(self.model), WorkSum(self.model)
        data.num_workers = 0
        data.setup("fit")
        batches = 0
        for batch in islice(data.train_dataloader(), SAMPLE):
            work.add(batch)
            batches += 1
        data.teardown("fit")
        share = self._micro_batches() / max(1, batches)
        return StepCost(work.examples * share, work.real_tokens * share, flops.total(work.sum()) * share)

    def seconds(self, flops: float) -> float:
        """How long this machine's device computes for that many operations; without start and validation."""
        device = torch.device("cuda" if uses_gpu(self.config) else "cpu")
        kind = product_kind(str(self.config["trainer"]["precision"]), self._dtype, device)
        peak = find_peak(device, kind, self.config["run"]["peak_tflops"])
        return flops / (peak.flops * REACHED * self._devices())

    def disk(self) -> int:
        """Bytes that a trial leaves: two checkpoints with the optimizer's state, and the exported model.

        With adapters they hold what is trained alone.
        """
        kept, trained = self._dtype, kept_names(self.model) if self.adapter else None
        learned = learned_type(self.adapter, str(self.config["trainer"]["precision"]), kept)
        sizes = [
            (parameter.numel(), parameter.requires_grad)
            for name, parameter in self.model.named_parameters()
            if trained is None or name in trained
        ]
        weights = sum(size for size, _ in sizes) * learned.itemsize
        moments = moment_bytes(self.model, self.optimizer, learned)
        state = sum(size for size, learns in sizes if learns) * moments
        return int(2 * (weights + state) + weights * bool(self.config["run"]["export"]))

    @property
    def _dtype(self) -> torch.dtype:
        if self.backbone.dtype == "auto":
            return torch.float32 if self.backbone.weights == "tiny" else torch.bfloat16
        dtype: torch.dtype = getattr(torch, self.backbone.dtype)
        return dtype

    def _micro_batches(self) -> int:
        """Micro-batches of a step; devices that share the work of one count once."""
        trainer, devices = self.config["trainer"], self._devices()
        try:
            strategy = strategy_of(trainer, trainer["num_nodes"], devices // trainer["num_nodes"])
        except OptionError:  # one without parts that compute the same
            strategy = {}
        together = strategy.get("tensor", 1) * strategy.get("context", 1)
        return int(devices // together * trainer["accumulate_grad_batches"])

    def _devices(self) -> int:
        devices, trainer = devices_of(self.config), self.config["trainer"]
        if devices is None and uses_gpu(self.config):
            why = "how many devices a trial has decides what a step costs; give a number"
            raise OptionError("devices", trainer["devices"], why, "trainer")
        return (devices or 1) * int(trainer["num_nodes"])


def devices_of(config: Mapping[str, Any]) -> int | None:
    """Devices of one node that a parsed recipe asks for; None where it takes what there is."""
    devices = config["trainer"]["devices"]
    count = len(devices) if isinstance(devices, list) else devices
    if isinstance(count, str) and count.isdecimal():
        count = int(count)
    return count if isinstance(count, int) and count > 0 else None


def uses_gpu(config: Mapping[str, Any]) -> bool:
    """Whether a trial of this parsed recipe takes a GPU: one that it asks for, or one that is here."""
    wanted = config["trainer"]["accelerator"]
    return wanted in ("gpu", "cuda") or (wanted == "auto" and torch.cuda.is_available())
