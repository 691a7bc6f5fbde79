"""Batches without examples: they teach nothing, disturb nothing, and are not logged."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.elastic_runs import BACKBONE, fit, make_data, write_shards
from helpers.forked import needs_fork
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from safetensors.torch import load_file, save_file

from v1lit.backbones import list_backbones
from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import PackingConfig, StreamConfig
from v1lit.data.encode.batch import blank_batch
from v1lit.data.images import ImageError
from v1lit.data.loading import reading
from v1lit.pointer.config import PointerConfig
from v1lit.testing.models import processor
from v1lit.training.config import OptimizerConfig
from v1lit.training.module import V1Module
from v1lit.training.throughput import Throughput

pytestmark = pytest.mark.slow

CONSTANT = OptimizerConfig(lr=1e-3, schedule="constant", warmup=0.0)


class Lines(Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append(dict(metrics))

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        pass

    @property
    def name(self) -> str:
        return "lines"

    @property
    def version(self) -> str:
        return "0"

    def values(self, name: str) -> list[float]:
        return [line[name] for line in self.lines if name in line]


class Gradients(Callback):
    """Writes the gradients of the first step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        if trainer.is_global_zero:
            parameters = module.named_parameters()
            save_file({name: p.grad.clone() for name, p in parameters if p.grad is not None}, self.path)


@pytest.mark.parametrize("counts", [(10, 4, 2), (0, 0, 0)], ids=["others have examples", "nobody has any"])
@pytest.mark.parametrize("loss", ["joint", "separate"])
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
@pytest.mark.parametrize("family", list_backbones())
def test_loss_and_gradients_of_a_blank_batch_are_zero(
    family: str, flat: bool, loss: Any, counts: tuple[int, int, int]
) -> None:
    module = V1Module(
        BackboneConfig(family), PointerConfig(loss=loss, z_weight=0.0 if loss != "joint" else 1e-4)
    )
    module.configure_model()
    module.model.verify_loss = True
    batch = blank_batch(processor(family).pad_token_id, flat)
    out = module(replace(batch, step_sums=torch.tensor(counts), micro_batches_per_step=4))
    assert out.loss.item() == 0.0
    assert all(part.item() == 0.0 for part in out.losses.values())
    assert out.verified == 0.0
    out.loss.backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


@pytest.mark.parametrize("packed", [False, True], ids=["counted", "packed"])
def test_a_run_with_blank_batches_logs_no_loss_of_theirs(packed: bool, tmp_path: Path) -> None:
    """Nine examples on four micro-batches: the last step has one example and three blank ones."""
    write_shards(tmp_path / "train", 9)
    lines = Lines()
    run = fit(
        tmp_path / "run",
        make_data(tmp_path, batch_size=1, packing=PackingConfig(150, 2) if packed else None),
        Throughput(peak_tflops=1.0),
        module=V1Module(BACKBONE, optimizer=CONSTANT, on_nonfinite="skip", verify_loss=1),
        accumulate_grad_batches=4,
        max_epochs=2,
        logger=lines,
        log_every_n_steps=1,
    )
    assert any(step.batches[-1] == () for step in run.steps)
    losses = lines.values("train/loss")
    assert len(losses) == len(run.steps)
    assert min(losses) > 0.0
    assert all(map(math.isfinite, losses))
    assert not lines.values("train/skipped_batches")
    for name in ("train/tokens_per_second", "train/padding_share", "train/mfu", "train/gradient_norm"):
        assert all(map(math.isfinite, lines.values(name))), name
        assert len(lines.values(name)) == len(run.steps)


def test_steps_whose_examples_cannot_be_used_disturb_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "train", 12)
    encode = reading.encode

    def spoilt(example: Any, *args: Any) -> Any:
        if int(example.id[1:]) not in (3, 4):
            raise ImageError("spoilt")
        return encode(example, *args)

    monkeypatch.setattr(reading, "encode", spoilt)
    lines = Lines()
    stream = StreamConfig(max_bad_fraction=1.0)
    run = fit(
        tmp_path / "run",
        make_data(tmp_path, batch_size=1, stream=stream),
        Throughput(peak_tflops=1.0),
        module=V1Module(BACKBONE, optimizer=CONSTANT),
        accumulate_grad_batches=2,
        logger=lines,
        log_every_n_steps=1,
    )
    assert len(run.steps) == 6
    assert sorted(id for step in run.steps for id in step.ids) == ["e003", "e004"]
    assert all(math.isfinite(value) for value in lines.values("train/loss"))
    assert all(torch.isfinite(weight).all() for weight in run.weights[0].values())
    listed = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert len(listed) == 10


@needs_fork
@pytest.mark.timeout(600)
def test_the_gradient_is_that_of_the_same_examples_without_blank_batches(tmp_path: Path) -> None:
    write_shards(tmp_path / "train", 3)
    found = []
    for ranks, size, accumulate in ((1, 3, 1), (1, 1, 4), (4, 1, 1)):
        folder = tmp_path / f"{ranks}-{accumulate}"
        module = V1Module(BACKBONE, optimizer=CONSTANT)
        run = fit(
            folder,
            make_data(tmp_path, batch_size=size),
            Gradients(tmp_path / "gradients.safetensors"),
            module=module,
            ranks=ranks,
            accumulate_grad_batches=accumulate,
        )
        assert len(run.steps) == 1
        assert run.batches[0].count(()) == ranks * accumulate - (1 if size == 3 else 3)
        found.append(load_file(tmp_path / "gradients.safetensors"))
    largest = max(gradient.abs().max().item() for gradient in found[0].values())
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)
