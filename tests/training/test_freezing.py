"""Freezing by pattern."""

from __future__ import annotations

import pytest

from v1lit.backbones.config import BackboneConfig
from v1lit.errors import OptionError
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.freezing import freeze_matching


def model() -> PointAndCopyModel:
    return PointAndCopyModel.build(BackboneConfig("qwen2_5_vl", tiny={"tie_word_embeddings": True}))


def test_what_matches_does_not_learn_and_all_else_does() -> None:
    own = model()
    lines = freeze_matching(own, ["*.layers.0.*", "*.layers.*.mlp.*"])
    frozen = {name for name, p in own.named_parameters() if not p.requires_grad}
    assert frozen == {
        n for n, _ in own.named_parameters() if ".layers.0." in n or (".layers." in n and ".mlp." in n)
    }
    first = [p for name, p in own.named_parameters() if ".layers.0." in name]
    numbers = sum(p.numel() for p in first)
    assert lines[0] == f"model.freeze: *.layers.0.* freezes {len(first)} parameters ({numbers:,} numbers)"
    assert lines[1].endswith("were frozen before")


def test_tied_weights_are_frozen_under_either_name() -> None:
    own = model()
    freeze_matching(own, ["*lm_head.weight"])
    assert not own.backbone.get_input_embeddings().weight.requires_grad


def test_a_pattern_that_matches_nothing_is_refused_with_near_names() -> None:
    with pytest.raises(
        OptionError, match=r"model.freeze is .*'\*\.layer\.0\.\*' matches no parameter.*near: .*layers\.0"
    ):
        freeze_matching(model(), ["*.layer.0.*"])
