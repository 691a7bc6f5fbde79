"""Steps on paper hold what real ones hold, to the byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.registry import BUILTIN
from v1lit.backbones.segments import Segments
from v1lit.plan import timeline
from v1lit.plan.architecture import model_config, model_on_meta
from v1lit.plan.batch import BatchShape, ImageShape, PaperBatch
from v1lit.plan.gpu_kernels import Compute
from v1lit.plan.memory import Placement, fullest
from v1lit.plan.moments import Moment
from v1lit.plan.paper import LiveBytes
from v1lit.plan.units import unit_sizes
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel

pytestmark = pytest.mark.slow
FAMILIES = tuple(BUILTIN)
KINDS_OF_LAYERS = ("qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava", "timm_lm", "gemma3")
"""Families whose layers differ in more than sizes."""
POINTER = PointerConfig(loss_implementation="chunked")
ALONE = Placement(
    whole=True, buckets=False, shards=1, tensor=1, weight=4, gathered=4, reduced=4, moments=8, accumulate=1
)


def backbone(family: str, **options: Any) -> BackboneConfig:
    """A tiny version with layers in the middle that are only noted."""
    sizes: dict[str, Any] = {"layers": 6, "vision_layers": 6, "hidden_size": 128, "intermediate_size": 256}
    if family == "qwen3_vl":
        sizes |= {"layers": 8, "vision_layers": 12, "deep_layers": [2, 5, 8]}
    if family == "qwen3_5":
        sizes |= {"layers": 9, "attention_layers": [1, 4, 6], "vision_layers": 4}
    return BackboneConfig(name=family, weights="tiny", tiny=sizes, **options)


def a_shape(config: BackboneConfig) -> BatchShape:
    image = ImageShape.of(config, (112, 84))
    return BatchShape(examples=2, tokens=image.tokens + 40, image=image)


def on_paper(config: BackboneConfig, compute: Compute) -> list[Moment]:
    model = model_on_meta(model_config(config), config, POINTER)
    return timeline.record(model, a_shape(config), compute)


class Zeros:
    """Makes pixels that have memory."""

    def empty(self, shape: Any, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)


def measured(config: BackboneConfig, autocast: torch.dtype | None) -> int:
    """The peak of two steps of AdamW, weights included."""
    model = PointAndCopyModel.build(config, POINTER).train()
    batch = PaperBatch.of(model, a_shape(config))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    live = LiveBytes()
    live.exclude([*model.parameters(), *model.buffers()])
    with live:
        for _ in range(2):
            inputs = batch.inputs(Zeros())  # type: ignore[arg-type]
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                loss = model(**inputs).loss
            optimizer.zero_grad()
            loss.backward()
            del loss, inputs
            optimizer.step()
    return live.peak + sum(p.nbytes for p in model.parameters())


HARDEST = (torch.bfloat16, {"gradient_checkpointing": ["language", "vision"]})
"""Mixed precision, and layers computed twice."""


@pytest.mark.parametrize(
    ("family", "autocast", "options"),
    [
        *[(family, *HARDEST) for family in FAMILIES],
        *[(family, None, {}) for family in ("qwen2_5_vl", "llava")],
        ("qwen2_vl", None, {"freeze": ["vision"]}),
    ],
)
def test_a_step_on_paper_holds_what_a_real_step_holds(
    family: str, autocast: torch.dtype | None, options: dict[str, Any]
) -> None:
    config = backbone(family, **options)
    moments = on_paper(config, Compute(torch.float32, autocast, gpu=False))
    units = unit_sizes(model_on_meta(model_config(config), config, POINTER))
    planned = fullest(moments, units, ALONE).total
    assert planned == pytest.approx(measured(config, autocast), rel=1e-3)


@pytest.mark.parametrize("family", KINDS_OF_LAYERS)
def test_layers_that_are_only_noted_hold_what_they_would_hold(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = backbone(family, gradient_checkpointing=["language"])
    compute = Compute(torch.float32, torch.bfloat16, gpu=True)
    Segments((a_shape(config).tokens,) * 2).bounds("cpu")  # kept from now on, so that both steps find them
    noted = on_paper(config, compute)
    monkeypatch.setattr(timeline, "_computing", lambda kind, count: set(range(count)))
    computed = on_paper(config, compute)
    if family != "qwen3_5":
        assert noted == computed
        return
    # The few weights of a short convolution, which every call casts anew, are not noted.
    assert [(m.unit, m.phase) for m in noted] == [(m.unit, m.phase) for m in computed]
    for one, other in zip(noted, computed, strict=True):
        held = [m.fullest.activations + m.fullest.copies + m.fullest.gradients for m in (one, other)]
        assert held[0] == pytest.approx(held[1], rel=2e-3)


def test_autocast_of_a_gpu_keeps_the_norms_of_a_vision_tower_in_float32() -> None:
    config = backbone("qwen2_vl")
    paper = [on_paper(config, Compute(torch.float32, torch.bfloat16, gpu)) for gpu in (True, False)]
    of_gpu, of_cpu = (next(m.after for m in moments if m.unit == "vision layer 1") for moments in paper)
    assert of_gpu.activations > of_cpu.activations


def test_a_model_of_72b_takes_no_memory() -> None:
    config = BackboneConfig(name="qwen2_5_vl", weights="Qwen/Qwen2.5-VL-72B-Instruct")
    model = model_on_meta(model_config(config), config, PointerConfig())
    assert sum(p.numel() for p in model.backbone.parameters()) == 73_410_777_344
    assert all(p.is_meta for p in model.parameters())
