"""Two ranks of one run: skipped batches and images on one rank only leave both with the same weights."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file, save_file

from v1lit.pointer.model import PointAndCopyOutput
from v1lit.training.module import V1Module

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, to start quickly")


def two_ranks() -> dict[str, Any]:
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=30))
    return {"devices": 2, "strategy": strategy, "limit_val_batches": 0}


def spoil(module: V1Module, rank: int, at: int) -> V1Module:
    """Make the loss of this rank's batch NaN, and keep the weights of both ranks in files."""
    module.configure_model()
    plain = module.model.forward
    count = -1

    def forward(*args: Any, **kwargs: Any) -> PointAndCopyOutput:
        nonlocal count
        out = plain(*args, **kwargs)
        count += 1
        if (module.global_rank, count) == (rank, at):
            out.loss = out.loss * float("nan")
        return out

    module.model.forward = forward  # type: ignore[method-assign]
    return module


@needs_fork
@pytest.mark.timeout(120)
def test_a_skipped_last_batch_of_a_step_leaves_both_ranks_alike(
    make_data: Any, make_module: Any, make_trainer: Any, tmp_path: Path
) -> None:
    """Its step's other batch went backward without an exchange, which only a backward pass starts."""
    module = spoil(make_module(on_nonfinite="skip"), rank=0, at=1)
    module.on_train_end = lambda: save_file(  # type: ignore[method-assign]
        {name: p.detach().clone() for name, p in module.model.named_parameters()},
        tmp_path / f"{module.global_rank}.safetensors",
    )
    before = {name: p.detach().clone() for name, p in module.model.named_parameters()}
    trainer = make_trainer(max_steps=1, accumulate_grad_batches=2, **two_ranks())
    trainer.fit(module, datamodule=make_data(batch_size=2))
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert any(not torch.equal(first[name], before[name]) for name in before)
    for name in before:
        assert torch.isfinite(first[name]).all()
        assert torch.equal(first[name], second[name]), name
