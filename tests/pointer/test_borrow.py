"""A model that is asked in the middle of training is left as it was."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.inference.predictor import Predictor
from v1lit.pointer.borrow import borrowed
from v1lit.pointer.model import PointAndCopyModel

pytestmark = pytest.mark.dependencies


def mixed() -> nn.Sequential:
    """In training mode, but for one part that somebody has frozen."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2)))
    model[1][1].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [part.training for part in model.modules()]


def test_every_part_has_its_mode_again() -> None:
    model = mixed()
    before = modes(model)
    with borrowed(model):
        assert not any(modes(model))
    assert modes(model) == before == [True, True, True, True, False]


def test_an_error_changes_nothing() -> None:
    model = mixed()
    before, state = modes(model), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="mat1 and mat2"), borrowed(model):
        model(torch.rand(1, 3))
    assert modes(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_are_drawn_on_from_a_model_that_is_not_trained() -> None:
    """Else sampling twice would give the same answer."""
    model = mixed().eval()
    with borrowed(model):
        first = torch.rand(3)
    with borrowed(model):
        assert not torch.equal(first, torch.rand(3))
    assert not any(modes(model))


def observable(model: PointAndCopyModel) -> dict[str, object]:
    tensors = [*model.named_buffers(), *model.named_parameters()]
    return {
        "modes": {name: part.training for name, part in model.named_modules()},
        "learning": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "inference": [name for name, tensor in tensors if tensor.is_inference()],
        "generation": model.generation_config.to_dict(),
        "config": model.config.to_dict(),
        "attention": (model.attention, model.backbone.config.get_text_config()._attn_implementation),
        "random": torch.get_rng_state().tolist(),
        "grad mode": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("inference", [False, True])
def test_a_question_leaves_no_trace_in_the_model(inference: bool) -> None:
    config = BackboneConfig("qwen2_5_vl", gradient_checkpointing=["language", "vision"])
    model, processor = PointAndCopyModel.build(config).train(), load_processor(config)
    model.backbone.model.visual.eval()
    tokenizer = processor.tokenizer
    before, side = observable(model), tokenizer.padding_side
    predictor = Predictor(model, processor)
    picture = Image.new("RGB", (56, 56), "red")
    with torch.inference_mode(inference):
        predictor(picture, "Where?", max_new_tokens=2)
        predictor(picture, "Where?", max_new_tokens=2, do_sample=True)
        with pytest.raises(ValueError, match="nonsense"):
            predictor(picture, "Where?", max_new_tokens=2, nonsense=1)
    assert observable(model) == before
    assert tokenizer.padding_side == side


def test_training_goes_on_to_the_same_weights() -> None:
    def train(ask: bool) -> list[Tensor]:
        torch.manual_seed(0)
        config = BackboneConfig("qwen2_5_vl")
        model = PointAndCopyModel.build(config).train()
        predictor = Predictor(model, load_processor(config))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            ids = torch.randint(5, 100, (1, 8))
            model(ids, labels=ids).loss.backward()
            if ask:
                predictor(Image.new("RGB", (56, 56)), "Where?", max_new_tokens=2, do_sample=True)
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach() for parameter in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train(ask=False), train(ask=True), strict=True))
