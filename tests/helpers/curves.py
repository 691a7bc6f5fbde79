"""A short run whose every step is noted, on one rank or on several, to see that they train alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from helpers.forked import run_ranks
from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig, SourceConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.pointer.config import PointerConfig
from v1lit.revisit.config import RevisitConfig
from v1lit.training import strategies  # noqa: F401  # their names become known to Lightning
from v1lit.training.config import OptimizerConfig
from v1lit.training.logged import GRADIENT_NORM
from v1lit.training.module import V1Module


@contextmanager
def gathered(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor whole, however it is divided."""
    if hasattr(tensor, "ds_shape"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            yield tensor
    else:
        yield tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@dataclass
class Curve:
    """What a run was like, step by step."""

    losses: list[float] = field(default_factory=list)
    """Of every micro-batch of a rank; their mean over the parts of a step is the step's."""
    images: list[int] = field(default_factory=list)
    """Of every micro-batch of a rank."""
    norms: list[float] = field(default_factory=list)
    """Of the gradients, before clipping."""
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    """Whole, at the end."""
    val: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What is trained, and how: the same for one rank and for several."""

    scenes: Path
    family: str = "qwen2_5_vl"
    steps: int = 4
    examples: int = 8
    """Of every step."""
    precision: str = "32-true"
    backbone: dict[str, Any] = field(default_factory=dict)
    pointer: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    module: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    spoiled: tuple[int, ...] = ()
    """Micro-batches whose loss becomes NaN on the first rank."""


LEARNS = RevisitConfig("point_only", {"end": "pointer"})
"""Strategy with vectors of its own that are learned."""
VARIED: dict[str, dict[str, Any]] = {
    "tied": {"backbone": {"tiny": {"tie_word_embeddings": True}}},
    "gate": {"pointer": {"gate": True}},
    "keys from embeddings": {"pointer": {"key_source": "embedding"}},
    "separate losses": {"pointer": {"loss": "separate", "z_weight": 0.0}},
    "frozen vision": {"backbone": {"freeze": ["vision"]}},
    "frozen language": {"backbone": {"freeze": ["language"]}},
    "activation checkpointing": {"backbone": {"gradient_checkpointing": ["language", "vision"]}},
    "verified loss": {"module": {"verify_loss": 1}},
    "learned vectors": {"module": {"revisit": LEARNS}, "data": {"revisit": LEARNS}},
}
"""What a division of the model over ranks could get wrong: fields of `Setting` by a name."""


class NotedModule(V1Module):
    """Notes the loss of every micro-batch and the norm of every step's gradients."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.curve = Curve()
        self.spoiled: tuple[int, ...] = ()

    def forward(self, batch: Any) -> Any:
        out = super().forward(batch)
        if self.training and len(batch) and len(self.curve.losses) in self.spoiled and self.global_rank == 0:
            out.loss = out.loss * float("nan")
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        self.curve.images.append(batch.images)
        self.curve.losses.append(float("nan") if loss is None else loss.item())
        return loss

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        if name == GRADIENT_NORM:
            self.curve.norms.append(float(value))
        super().log(name, value, *args, **options)

    def on_train_end(self) -> None:
        super().on_train_end()  # with an average of the weights, it is noted
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for name, tensor in self.model.state_dict().items():
            with gathered(parameters.get(name, tensor)) as whole:
                self.curve.weights[name] = whole.detach().float().numpy().copy()
        metrics = self.trainer.callback_metrics
        self.curve.val = {name: float(value) for name, value in metrics.items() if name.startswith("val/")}


def train(setting: Setting, strategy: Any, ranks: int, nodes: int, accumulate: int) -> Curve:
    """One rank's part of a run; `ranks` times `accumulate` micro-batches make a step."""
    batch = setting.examples // (ranks * accumulate)
    backbone = BackboneConfig(setting.family, **setting.backbone)
    optimizer = OptimizerConfig(**{"lr": 1e-3, **setting.optimizer})
    module = NotedModule(backbone, PointerConfig(**setting.pointer), optimizer, **setting.module)
    module.spoiled = setting.spoiled
    data = V1DataModule(
        backbone,
        source=SourceConfig("shards", str(setting.scenes)),
        **{
            "batch_size": batch,
            "encoding": EncodingConfig(coordinates=False),
            "num_workers": 0,
            **setting.data,
        },
    )
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "gradient_clip_val": 0.5,
        "default_root_dir": str(setting.scenes),
    }
    trainer = Trainer(
        accelerator="cpu",
        strategy=strategy,
        devices=ranks // nodes,
        num_nodes=nodes,
        max_steps=setting.steps,
        accumulate_grad_batches=accumulate,
        precision=setting.precision,  # type: ignore[arg-type]
        **{**quiet, **setting.trainer},
    )
    trainer.fit(module, datamodule=data)
    return module.curve


def train_on(setting: Setting, strategy: Any, ranks: int, nodes: int = 1, accumulate: int = 1) -> list[Curve]:
    """The run on that many forked ranks; what each has noted."""
    return run_ranks(ranks, train, setting, strategy, ranks, nodes, accumulate, nodes=nodes)


def step_losses(curves: list[Curve], accumulate: int, steps: int) -> list[float]:
    """The loss of every step, from the micro-batches of all ranks."""
    table = torch.tensor([curve.losses for curve in curves], dtype=torch.float64)
    return table.reshape(len(curves), steps, accumulate).mean(dim=(0, 2)).tolist()


def largest_difference(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """Over all weights of two models with the same names."""
    assert first.keys() == second.keys()
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


def train_in_twos(setting: Setting, strategy: Any, ranks: int, accumulate: int) -> list[Curve]:
    """The run on that many ranks, two of which are one reader of data."""
    batch = setting.examples // (ranks // 2 * accumulate)
    setting = replace(setting, data={"batch_size": batch, **setting.data})
    return train_on(setting, strategy, ranks, 1, accumulate)


def assert_alike_in_twos(setting: Setting, strategy: Any, ranks: int, accumulate: int) -> None:
    """That such a run trains as one process."""
    one = train_on(setting, "auto", 1, accumulate=4)
    several = train_in_twos(setting, strategy, ranks, accumulate)
    expected = step_losses(one, 4, setting.steps)
    assert step_losses(several, accumulate, setting.steps) == pytest.approx(expected, rel=1e-5)
    assert one[0].norms[0] > setting.trainer.get("gradient_clip_val", 0.5)  # so that clipping is tried
    for rank, curve in enumerate(several):
        assert curve.losses == several[rank // 2 * 2].losses
        assert curve.norms == pytest.approx(one[0].norms, rel=1e-5)
        assert largest_difference(curve.weights, one[0].weights) < 3e-5


def assert_alike(setting: Setting, strategy: Any, ranks: int, nodes: int = 1, accumulate: int = 1) -> None:
    """As one rank that accumulates four micro-batches in every step."""
    one = train_on(setting, "auto", 1, accumulate=4)
    several = train_on(setting, strategy, ranks, nodes, accumulate)
    expected = step_losses(one, 4, setting.steps)
    assert step_losses(several, accumulate, setting.steps) == pytest.approx(expected, rel=1e-5)
    assert one[0].norms[0] > setting.trainer.get("gradient_clip_val", 0.5)  # so that clipping is tried
    for curve in several:
        assert curve.norms == pytest.approx(one[0].norms, rel=1e-5)
        assert largest_difference(curve.weights, one[0].weights) < 3e-5
