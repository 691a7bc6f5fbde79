"""A model that is made empty and filled is the one that ordinary loading makes, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers.stock_folders import stock_folder
from v1lit.backbones.config import BackboneConfig
from v1lit.parallel.fill import fill
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "llava", "internvl")


def filled(config: BackboneConfig, pointer: PointerConfig | None = None) -> PointAndCopyModel:
    """Made empty, then filled in this one process."""
    model = PointAndCopyModel.build(config, pointer, empty=True)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    torch.manual_seed(3)
    fill(model, config, "cpu")
    return model


def ordinary(config: BackboneConfig, pointer: PointerConfig | None = None) -> PointAndCopyModel:
    torch.manual_seed(3)
    return PointAndCopyModel.build(config, pointer)


def assert_same(model: nn.Module, other: nn.Module) -> None:
    """Classes, order, types, bits, and what learns; buffers outside the state dict included."""
    assert [(name, type(module)) for name, module in model.named_modules()] == [
        (name, type(module)) for name, module in other.named_modules()
    ]
    for tensors in ("named_parameters", "named_buffers"):
        ours, theirs = (list(getattr(one, tensors)()) for one in (model, other))
        assert [name for name, _ in ours] == [name for name, _ in theirs]
        for (name, tensor), (_, wanted) in zip(ours, theirs, strict=True):
            assert tensor.dtype == wanted.dtype, name
            assert torch.equal(tensor, wanted), name
            assert tensor.requires_grad == wanted.requires_grad, name


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> str:
    """The folder with its weights changed."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", ["tiny", "folder"])
def test_filling_is_ordinary_loading(family: str, weights: str, tmp_path: Path) -> None:
    if weights == "folder":
        weights = str(stock_folder(tmp_path, family))
    config = BackboneConfig(family, weights, freeze=["vision"], gradient_checkpointing=["language"])
    model, other = filled(config), ordinary(config)
    assert_same(model, other)
    assert model.config.to_dict() == other.config.to_dict()
    assert model.config.backbone_config.name_or_path == other.config.backbone_config.name_or_path
    assert model.generation_config.to_dict() == other.generation_config.to_dict()
    assert model.training == other.training


@pytest.mark.parametrize("weights", ["tiny", "folder"])
def test_the_random_numbers_that_follow_are_the_same(weights: str, tmp_path: Path) -> None:
    config = BackboneConfig(weights=str(stock_folder(tmp_path)) if weights == "folder" else weights)
    filled(config)
    after = torch.get_rng_state()
    ordinary(config)
    assert torch.equal(after, torch.get_rng_state())
