"""The check that `v1lit doctor --packing` shows: it passes where it should, and notices what it is for."""

from __future__ import annotations

import pytest
import torch

from v1lit.backbones import list_backbones
from v1lit.testing.models import build, processor, training_examples
from v1lit.training.packing_check import check_packing


@pytest.mark.parametrize("family", list_backbones())
def test_every_family_passes(family: str) -> None:
    model = build(family).train()
    bias = next(p for name, p in model.named_parameters() if name.endswith("bias"))
    bias.grad = gradient = torch.ones_like(bias)  # as in the middle of an accumulated step
    check = check_packing(model, training_examples(family, (1, 0, 2)), processor(family).pad_token_id)
    assert check.passed
    assert [one.images for one in check.examples] == [1, 0, 2]
    assert all(one.leak == 0.0 for one in check.examples)
    assert model.training
    assert bias.grad is gradient
    assert gradient.eq(1).all()
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not bias)


def test_attention_across_examples_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the decoder knew nothing of segments: one long causal row."""
    model = build("llava")

    def unpacked(segments: object, device: torch.device, dtype: torch.dtype) -> dict[str, object]:
        return {"attention_mask": None, "use_cache": False}

    monkeypatch.setattr("v1lit.pointer.model.packed_decoder_arguments", unpacked)
    positions = torch.arange(10_000)
    monkeypatch.setattr(
        "v1lit.pointer.inputs.packed_positions",
        lambda family, inner, ids, segments, **images: positions[None, : ids.shape[1]],
    )
    check = check_packing(model, training_examples("llava", (1, 0, 2)), 0)
    assert not check.passed
    assert check.examples[0].leak == 0.0  # nothing stands before it
    assert check.examples[2].leak > 0.0


def test_positions_that_go_on_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("qwen2_5_vl")
    original = model._positions

    def shifted(*arguments: object) -> torch.Tensor:
        positions = original(*arguments)  # type: ignore[arg-type]
        if arguments[2] is None:
            return positions
        positions[..., -20:] *= 2
        return positions

    monkeypatch.setattr(model, "_positions", shifted)
    assert not check_packing(model, training_examples("qwen2_5_vl"), 0).passed


def test_one_example_is_not_enough() -> None:
    with pytest.raises(ValueError, match="at least two, given 1"):
        check_packing(build("llava"), training_examples("llava", (1,)), 0)
