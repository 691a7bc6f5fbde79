"""A folder of tiny synthetic shards, and a quiet trainer for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig, SourceConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.synthetic import synthesize
from v1lit.pointer.output import PointAndCopyOutput
from v1lit.training.config import OptimizerConfig
from v1lit.training.module import V1Module


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 6 held-out scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    synthesize(
        folder / "train", examples=24, image_size=(112, 112), workers=1, progress=False, shard_examples=10
    )
    synthesize(folder / "val", examples=6, seed=1, image_size=(112, 112), workers=1, progress=False)
    return folder


@pytest.fixture
def make_data(scenes: Path):
    def make(**options: Any) -> V1DataModule:
        return V1DataModule(
            BackboneConfig("qwen2_5_vl"),
            source=SourceConfig("shards", str(scenes)),
            **{"batch_size": 4, "encoding": EncodingConfig(coordinates=False), **options},
        )

    return make


@pytest.fixture
def make_module():
    def make(**options: Any) -> V1Module:
        return V1Module(
            BackboneConfig("qwen2_5_vl"), optimizer=OptimizerConfig(lr=1e-3, schedule="linear"), **options
        )

    return make


@pytest.fixture
def spoil():
    def make(module: V1Module, at: set[int]) -> V1Module:
        """Make the loss of these training batches NaN, on the first rank."""
        module.configure_model()
        plain = module.model.forward
        count = -1

        def forward(*args: Any, **kwargs: Any) -> PointAndCopyOutput:
            nonlocal count
            out = plain(*args, **kwargs)
            if module.training:
                count += 1
                if count in at and module.global_rank == 0:
                    out.loss = out.loss * float("nan")
            return out

        module.model.forward = forward  # type: ignore[method-assign]
        return module

    return make


@pytest.fixture
def make_trainer(tmp_path: Path):
    def make(**options: Any) -> Trainer:
        torch.manual_seed(0)
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": str(tmp_path),
        }
        return Trainer(**{**quiet, **options})

    return make
