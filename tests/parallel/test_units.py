"""Where models are cut: every parameter has one owner, and only small parts are left to the root."""

from __future__ import annotations

import pytest
from torch import nn

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.contract import Backbone
from v1lit.backbones.registry import get_backbone, list_backbones
from v1lit.parallel.units import ROOT, Units
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel


def model_of(family: str, **tiny: object) -> PointAndCopyModel:
    return PointAndCopyModel.build(BackboneConfig(family, tiny=tiny), PointerConfig())


def of_root(model: PointAndCopyModel, units: Units) -> set[str]:
    """Parameters that the root owns, but for the pointer head and the projector."""
    outside = ("pointer_head", *(f"backbone.{path}" for path in model.family.parts["projector"]))
    rest = [name for name, owner in units.owners.items() if owner == ROOT]
    return {name for name in rest if not name.startswith(outside)}


@pytest.mark.parametrize("family", list_backbones())
def test_every_parameter_has_an_owner_and_the_root_little(family: str) -> None:
    model = model_of(family)
    units = Units.of(model)
    assert units.owners.keys() == dict(model.named_parameters()).keys()
    for name, owner in units.owners.items():
        assert owner == ROOT or name.startswith(f"{owner}.")
    left = of_root(model, units)
    # How patches become tokens, class and position tokens, and norms before and behind the layers.
    marks = ("patch_embed", "pos_embed", "embeddings", "norm")
    assert [name for name in sorted(left) if not any(mark in name for mark in marks)] == []


@pytest.mark.parametrize("family", list_backbones())
def test_units_are_all_layers_the_embeddings_and_the_head(family: str) -> None:
    model = model_of(family, layers=3, vision_layers=2)
    names = list(Units.of(model).modules)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert model.get_submodule(names[0]) is embeddings
    assert model.get_submodule(names[-1]) is head
    assert len(names) == 2 + 3 + 2


def test_tied_embeddings_stay_with_the_root() -> None:
    model = model_of("qwen2_5_vl", tie_word_embeddings=True)
    units = Units.of(model)
    assert not any(name.endswith(("embed_tokens", "lm_head")) for name in units.modules)
    tied = [name for name in of_root(model, units) if "embed_tokens" in name]
    assert len(tied) == 1


def test_a_family_without_layers_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("qwen2_5_vl")
    backbone = type(get_backbone("qwen2_5_vl"))

    def none_of_vision(self: Backbone, model: nn.Module, part: str) -> list[nn.Module]:
        return [] if part == "vision" else Backbone.layers(self, model, part)

    monkeypatch.setattr(backbone, "layers", none_of_vision)
    with pytest.raises(ValueError, match=r"qwen2_5_vl names no layers of its vision part.*strategy=ddp"):
        Units.of(model)
