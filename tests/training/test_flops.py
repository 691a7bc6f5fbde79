"""The formula for a step's operations, against torch's own count of the products that are really computed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from v1lit.backbones import linear_attention, list_backbones
from v1lit.backbones.contract import Backbone
from v1lit.backbones.load import freeze
from v1lit.backbones.work import VisionWork
from v1lit.data.encode.batch import Batch, flatten
from v1lit.testing.models import build, inputs, processor, training_examples
from v1lit.training.flops import ModelFlops, Work, WorkSum

pytestmark = pytest.mark.dependencies

# Attention written as matrix products computes all scores, those of later tokens too; the formula counts half
# of them in the causal decoder.
CAUSAL = 2.0


def batch_of(family: str, images: tuple[int, ...] = (1, 0, 2)) -> Batch:
    return flatten(training_examples(family, images), processor(family).pointer_start)


def work_of(flops: ModelFlops, batch: Batch) -> Work:
    total = WorkSum(flops.model)
    total.add(batch)
    return total.sum()


def model_of(family: str, **options: Any) -> Any:
    return build(family, **options).train()


def counted(run: Any) -> float:
    # As matrix products, which every version of torch counts: not every one knows the CPU's fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    # The gradient of a convolution that has its weights for each channel alone is counted as if it had
    # them for all pairs of channels; it is two products, like that of a matrix.
    count: dict[Any, int] = counter.get_flop_counts()["Global"]
    backward = torch.ops.aten.convolution_backward
    return (
        sum(count.values())
        - count.get(backward, 0)
        + 2 * count.get(torch.ops.aten.convolution, 0) * (backward in count)
    )


def recurrence(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """The gated delta rule token by token, in products that torch counts; kernels of chunks do more."""
    state = torch.zeros(*key.shape[2:], value.shape[-1])
    states = []
    for q, k, v, decay, b in zip(*(x[0] for x in (query, key, value, g, beta)), strict=True):
        state = decay.exp()[:, None, None] * state
        known = k[:, None] @ state
        state = state + k[..., None] @ (b[:, None, None] * (v[:, None] - known))
        states.append(q[:, None] @ state)
    return torch.cat(states, dim=1).transpose(0, 1)[None], None


@pytest.mark.parametrize("frozen", [[], ["vision"], ["vision", "projector", "language"]], ids=str)
@pytest.mark.parametrize("family", list_backbones())
def test_a_whole_step_costs_what_torch_counts(
    family: str, frozen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_attention, "segment_kernel", lambda device: recurrence)
    model, batch = model_of(family), batch_of(family)
    freeze(model.backbone, model.family, frozen)
    flops = ModelFlops(model)
    work = work_of(flops, batch)
    parts, states = flops.parts(work), flops.parts(replace(work, pairs=0))["language"].attention
    seen = counted(lambda: model(**inputs(batch), labels=batch.labels).loss.backward())
    expected = sum(part.products for part in parts.values()) + parts["pointer"].attention
    expected += parts["vision"].attention + CAUSAL * (parts["language"].attention - states) + states
    assert seen == pytest.approx(expected, rel=0.04)


def test_a_layer_of_the_tower_whose_output_is_not_taken_is_not_counted() -> None:
    model, batch = build("llava"), batch_of("llava")
    more = ModelFlops(model)
    all_layers = work_of(more, batch).vision
    model.backbone.config.vision_feature_layer = -2
    less = ModelFlops(model)
    assert less.vision.numbers * 2 == more.vision.numbers
    assert work_of(less, batch).vision == all_layers._replace(attention=all_layers.attention // 2)


def test_a_family_that_states_no_formula_is_named() -> None:
    model = build("llava")
    model.family.vision_work = partial(Backbone.vision_work, model.family)
    with pytest.raises(ValueError, match="operations of llava: it does not state vision_work"):
        ModelFlops(model)


def test_the_formula_of_a_text_decoder_is_6n_and_half_of_12_layers_width_length() -> None:
    model = build("qwen2_5_vl")
    flops, text = ModelFlops(model), model.config.get_text_config()
    layers = model.backbone.model.language_model.layers
    matrices = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
    work = Work(tokens=50, pairs=30**2 + 20**2, positions=0, examples=2, vision=VisionWork())
    language = flops.parts(work)["language"]
    assert language.products == 6 * matrices * 50
    assert language.attention == 12 * len(layers) * text.hidden_size * (30**2 + 20**2) / 2


def test_only_supervised_positions_pay_for_the_vocabulary() -> None:
    model, batch = build("qwen2_5_vl"), batch_of("qwen2_5_vl")
    flops = ModelFlops(model)
    work = work_of(flops, batch)
    assert batch.counts is not None
    assert work.positions == batch.counts.text + batch.counts.pointers
    head = model.get_output_embeddings().weight
    assert flops.parts(work)["head"].total == 6 * work.positions * head.numel()
    assert flops.parts(replace(work, positions=0))["head"].total == 0


def test_padding_costs_nothing() -> None:
    from v1lit.testing.models import training_batch

    model = build("internvl")
    flops, flat = ModelFlops(model), batch_of("internvl")
    padded = replace(training_batch("internvl"), counts=flat.counts)
    assert padded.tokens > flat.tokens
    assert work_of(flops, padded) == work_of(flops, flat)


def test_several_batches_are_summed() -> None:
    flops = ModelFlops(build("qwen2_5_vl"))
    total = WorkSum(flops.model)
    for images in ((1, 0), (0,), (2, 1)):
        total.add(batch_of("qwen2_5_vl", images))
    parts = [work_of(flops, batch_of("qwen2_5_vl", images)) for images in ((1, 0), (0,), (2, 1))]
    assert total.sum().vision == tuple(map(sum, zip(*(work.vision for work in parts), strict=True)))
    for count in ("tokens", "pairs", "positions", "examples"):
        assert getattr(total.sum(), count) == sum(getattr(work, count) for work in parts)


def test_gradients_of_frozen_weights_are_not_counted() -> None:
    model = build("qwen2_5_vl")
    work = Work(tokens=100, pairs=10**4, positions=10, examples=1, vision=VisionWork())
    freeze(model.backbone, model.family, ["vision", "language"])
    language = ModelFlops(model).parts(work)["language"]
    freeze(model.backbone, model.family, ["projector"])
    nothing = ModelFlops(model).parts(work)["language"]
    assert nothing.total * 2 == pytest.approx(language.products + language.attention - nothing.attention)
    torch.testing.assert_close(nothing.attention * 3, language.attention)


def test_linear_attention_costs_the_same_for_every_token_and_the_square_of_lengths_nothing() -> None:
    model = build("qwen3_5", tiny={"layers": 4, "attention_layers": [3]})
    flops, text = ModelFlops(model), model.config.get_text_config()
    state = text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim
    work = Work(tokens=50, pairs=0, positions=0, examples=2, vision=VisionWork())
    # Three products of two operations forward, twice as many backward, in three layers.
    assert flops.parts(work)["language"].attention == 50 * 18 * 3 * state
    attention = flops.parts(replace(work, pairs=50**2))["language"].attention - 50 * 18 * 3 * state
    assert attention == 12 * text.hidden_size * 50**2 / 2
