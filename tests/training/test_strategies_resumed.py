"""A run of any strategy on any family is resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.registry import list_backbones
from v1lit.data.config import SourceConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.revisit.config import RevisitConfig
from v1lit.revisit.registry import list_strategies
from v1lit.training.config import OptimizerConfig
from v1lit.training.module import V1Module

WAYS = {
    **{name: RevisitConfig(name) for name in list_strategies()},
    "ends": RevisitConfig(options={"end": "pointer"}),
    "random_region": RevisitConfig(control="random_region"),
}


@pytest.mark.parametrize("family", list_backbones())
@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_ends_with_the_weights_of_one_that_never_stopped(
    way: str, family: str, scenes: Path, make_trainer: Any, tmp_path: Path
) -> None:
    kept = tmp_path / "1.ckpt"

    steps: list[int] = []

    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            steps.append(trainer.global_step)
            if trainer.global_step == 1:
                trainer.save_checkpoint(kept)

    def run(checkpoint: Path | None) -> dict[str, torch.Tensor]:
        backbone, source = BackboneConfig(family), SourceConfig("shards", str(scenes))
        module = V1Module(backbone, revisit=WAYS[way], optimizer=OptimizerConfig(lr=1e-3))
        data = V1DataModule(backbone, source=source, batch_size=2, revisit=WAYS[way])
        make_trainer(max_steps=2, limit_val_batches=0, callbacks=[Save()]).fit(
            module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None
        )
        return dict(module.model.state_dict())

    expected = run(None)
    saved = torch.load(kept, weights_only=True)["state_dict"]
    assert any(not torch.equal(value, saved["model." + name]) for name, value in expected.items())
    resumed = run(kept)
    assert steps == [1, 2, 2]
    assert resumed.keys() == expected.keys()
    for name, value in resumed.items():
        assert torch.equal(value, expected[name]), name
