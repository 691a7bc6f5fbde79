"""A model that is trained on a stream, stopped and gone on with has the weights of one never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.stream_cases import archives, source
from helpers.tiny_runs import BACKBONE, SaveAfter, make_data, tokens
from lightning import Trainer

from v1lit.data.config import PackingConfig
from v1lit.training.config import OptimizerConfig
from v1lit.training.module import V1Module

pytestmark = [pytest.mark.slow, pytest.mark.dependencies]


def train(
    folder: Path, out: Path, workers: int, *callbacks: SaveAfter, resume: Path | None = None
) -> V1Module:
    data = make_data(
        out, out, source=source(f"pipe:cat {folder}/s{{0..2}}.tar.gz", shuffle=3), num_workers=workers,
        packing=PackingConfig(3 * tokens(), look_ahead=4),
    )  # fmt: skip
    module = V1Module(BACKBONE, optimizer=OptimizerConfig(lr=1e-2, schedule="constant", warmup=0.0))
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=str(out), max_steps=7, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    assert trainer.global_step == (callbacks[0].steps if callbacks else 7)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_weights_equal_those_of_a_run_never_stopped(tmp_path: Path, workers: int) -> None:
    """Over the end of an epoch, of about four steps."""
    archives(tmp_path, [5, 3, 4], ".tar.gz")
    whole = train(tmp_path, tmp_path / "whole", workers)
    path = tmp_path / "some.ckpt"
    train(tmp_path, tmp_path / "first", workers, SaveAfter(3, path, stop=True))
    rest = train(tmp_path, tmp_path / "rest", workers, resume=path)
    for (name, a), (_, b) in zip(whole.named_parameters(), rest.named_parameters(), strict=True):
        assert torch.equal(a, b), name
