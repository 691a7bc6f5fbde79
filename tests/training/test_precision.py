"""Half precision: weights and pictures are converted; ids, sums of metrics and rotary frequencies are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.plugins.precision import HalfPrecision

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.load import load_backbone
from v1lit.training.module import V1Module

pytestmark = pytest.mark.dependencies


class Types(Callback):
    """Notes the types of the tensors of the batches as the model gets them."""

    def __init__(self) -> None:
        self.images: set[torch.dtype] = set()
        self.ids: set[torch.dtype] = set()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        batch = trainer.precision_plugin.convert_input(batch)
        self.images.add(batch.image_inputs["pixel_values"].dtype)
        self.ids |= {tensor.dtype for tensor in (batch.input_ids, batch.labels, batch.attention_mask)}


@pytest.mark.parametrize(
    ("precision", "weights", "images"),
    [
        ("bf16-mixed", torch.float32, torch.float32),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
    ],
)
def test_two_steps(
    make_data: Any, make_module: Any, make_trainer: Any, precision: str, weights: Any, images: Any
) -> None:
    types, module = Types(), make_module()
    trainer = make_trainer(max_steps=2, precision=precision, callbacks=[types], val_check_interval=2)
    trainer.fit(module, datamodule=make_data())
    assert trainer.global_step == 2
    assert {parameter.dtype for parameter in module.model.parameters()} == {weights}
    assert types.images == {images}
    assert types.ids == {torch.int64}
    rotary = [buffer for name, buffer in module.model.named_buffers() if name.endswith("inv_freq")]
    assert rotary
    assert {buffer.dtype for buffer in rotary} == {torch.float32}
    measures = module.val_measures
    assert measures.pointing.sums.dtype == measures.losses.sums.dtype == torch.float64
    assert torch.isfinite(trainer.callback_metrics["val/loss"])


def test_a_converted_batch_keeps_everything_else(make_data: Any) -> None:
    data = make_data()
    data.prepare_data()
    batch = next(iter(data.train_dataloader()))
    converted = HalfPrecision("bf16-true").convert_input(batch)
    assert converted.image_inputs["pixel_values"].dtype == torch.bfloat16
    assert batch.image_inputs["pixel_values"].dtype == torch.float32
    assert (converted.ids, converted.read) == (batch.ids, batch.read)
    assert torch.equal(converted.labels, batch.labels)


def test_a_checkpoint_is_trained_in_training_mode(tmp_path: Path) -> None:
    """transformers opens checkpoints in eval mode, in which it ignores gradient checkpointing."""
    load_backbone(BackboneConfig("qwen2_5_vl")).save_pretrained(tmp_path)
    module = V1Module(
        BackboneConfig("qwen2_5_vl", weights=str(tmp_path), gradient_checkpointing=["language"])
    )
    module.configure_model()
    assert all(part.training for part in module.model.modules())
