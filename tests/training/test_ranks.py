"""Two ranks of one run: a batch that one of them skips leaves both with the same weights."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.forked import needs_fork
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.dependencies


def two_ranks() -> dict[str, Any]:
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=30))
    return {"devices": 2, "strategy": strategy, "limit_val_batches": 0}


@needs_fork
@pytest.mark.timeout(120)
def test_a_skipped_last_batch_of_a_step_leaves_both_ranks_alike(
    make_data: Any, make_module: Any, make_trainer: Any, spoil: Any, tmp_path: Path
) -> None:
    """Its step's other batch went backward without an exchange, which only a backward pass starts."""
    module = spoil(make_module(on_nonfinite="skip"), {1})
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


@needs_fork
@pytest.mark.timeout(120)
def test_the_logged_loss_is_that_of_all_ranks(
    make_data: Any, make_module: Any, make_trainer: Any, tmp_path: Path
) -> None:
    module = make_module()
    parts = module._of_all_ranks

    def noted(out: Any) -> Any:
        own = {"sum": out.terms.sums["joint"].detach(), "count": out.terms.counts["joint"].detach()}
        losses = parts(out)
        assert torch.stack(list(out.losses.values())).isfinite().all()
        save_file(
            {
                **{name: value.double() for name, value in own.items()},
                "logged": losses["loss_joint"].double(),
            },
            tmp_path / f"{module.global_rank}.safetensors",
        )
        return losses

    module._of_all_ranks = noted
    trainer = make_trainer(max_steps=1, log_every_n_steps=1, **two_ranks())
    trainer.fit(module, datamodule=make_data(batch_size=2))
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert first["sum"] != second["sum"]
    expected = (first["sum"] + second["sum"]) / (first["count"] + second["count"])
    assert torch.allclose(first["logged"], expected, rtol=1e-6)
    assert torch.equal(first["logged"], second["logged"])
