"""Linear attention in packed rows: every segment begins with an empty state and nothing before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.stock_folders import stock_folder
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.qwen3_5 import modeling_qwen3_5 as stock

from v1lit.backbones import BackboneConfig, linear_attention
from v1lit.backbones.linear_attention import CHUNK, SegmentedDeltaNet, equal_chunks
from v1lit.backbones.load import load_backbone
from v1lit.backbones.segments import Segments
from v1lit.data.encode.batch import collate
from v1lit.testing.models import generate, mixed, prefers_pointing, processor

pytestmark = pytest.mark.dependencies

# Shorter than the convolution, around the length of a chunk, and some of one length.
LENGTHS = (1, CHUNK, 2, CHUNK + 1, 5, CHUNK - 1, 5, 2 * CHUNK + 7, 3)
WIDTH = 64


def mixer(**sizes: int) -> SegmentedDeltaNet:
    """The linear attention of a tiny model, with weights that make decay and state matter."""
    torch.manual_seed(0)
    model = load_backbone(BackboneConfig("qwen3_5", tiny=sizes))
    (found,) = [module for module in model.modules() if isinstance(module, SegmentedDeltaNet)]
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
        found.A_log.fill_(-2.0)  # a long memory: what leaks would be seen far behind
    return found


def states(seed: int = 1, tokens: int = sum(LENGTHS)) -> Tensor:
    return torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def alone(module: Any, row: Tensor) -> Tensor:
    """Every segment in a call of its own, by the stock module."""
    forward = stock.Qwen3_5GatedDeltaNet.forward
    return torch.cat([forward(module, piece) for piece in row.split(LENGTHS, dim=1)], dim=1)


def backward(module: nn.Module, output: Tensor, row: Tensor) -> dict[str, Tensor]:
    """Gradients of a weighted sum."""
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad((output * weight).sum(), [row, *parameters])
    return dict(zip(("states", *names), gradients, strict=True))


@pytest.mark.parametrize("sizes", [{}, {"linear_value_heads": 2}, {"linear_key_heads": 1}], ids=str)
def test_a_packed_row_is_its_segments_alone_gradients_included(sizes: dict[str, int]) -> None:
    module, row = mixer(**sizes), states().requires_grad_()
    ours, theirs = module(row, segments=Segments(LENGTHS)), alone(module, row)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    expected = backward(module, theirs, row)
    for name, gradient in backward(module, ours, row).items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5 * scale, msg=name)
    # The same row as one sequence is something else, from the first token behind a border on.
    leaky = stock.Qwen3_5GatedDeltaNet.forward(module, row)
    behind = [sum(LENGTHS[: n + 1]) for n in range(len(LENGTHS) - 1)]
    assert ((leaky - theirs)[0, behind].abs().amax(dim=-1) > 1e-3).all()


@pytest.mark.parametrize("other", [1e3, float("inf"), float("nan")])
def test_nothing_of_a_segment_reaches_another_not_even_what_is_no_number(other: float) -> None:
    module, row = mixer(), states()
    starts = [sum(LENGTHS[:n]) for n in range(len(LENGTHS) + 1)]
    before = module(row, segments=Segments(LENGTHS))
    for changed in (1, 4, 7):
        inside = slice(starts[changed], starts[changed + 1])
        altered = row.clone()
        altered[:, inside] = other * altered[:, inside]
        after = module(altered, segments=Segments(LENGTHS))
        assert not torch.equal(after[:, inside], before[:, inside])
        outside = torch.ones(row.shape[1], dtype=torch.bool)
        outside[inside] = False
        assert torch.equal(after[:, outside], before[:, outside])


def test_no_gradient_flows_from_a_segment_to_another() -> None:
    module, row = mixer(), states().requires_grad_()
    output = module(row, segments=Segments(LENGTHS))
    start = sum(LENGTHS[:3])
    output[:, start : start + LENGTHS[3]].sum().backward()
    assert row.grad is not None
    touched = row.grad[0].abs().amax(dim=-1).nonzero()[:, 0].tolist()
    assert touched == list(range(start, start + LENGTHS[3]))


def test_in_half_precision_it_is_as_exact_as_the_stock_module() -> None:
    module, row = mixer(), states()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = module(row, segments=Segments(LENGTHS)), alone(module, row)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()


def test_segments_must_fill_the_row() -> None:
    with pytest.raises(ValueError, match=r"segments of 7 tokens for states of shape \(1, 8, 64\)"):
        mixer()(states(tokens=8), segments=Segments((3, 4)))


def test_a_kernel_that_knows_of_segments_gets_the_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for a GPU's kernel has its signature, and computes segment by segment."""
    calls = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **options: Any) -> Any:
        bounds = options.pop("cu_seqlens")
        calls.append(bounds)
        whole = (q, k, v, g, beta)
        pieces = zip(*(x.split(bounds.diff().tolist(), dim=1) for x in whole), strict=True)
        outputs = [
            stock.torch_chunk_gated_delta_rule(*piece[:3], g=piece[3], beta=piece[4], **options)[0]
            for piece in pieces
        ]
        return torch.cat(outputs, dim=1), None

    module, row = mixer(), states()
    expected = module(row, segments=Segments(LENGTHS))
    monkeypatch.setattr(linear_attention, "segment_kernel", lambda device: kernel)
    torch.testing.assert_close(module(row, segments=Segments(LENGTHS)), expected)
    (bounds,) = calls
    assert bounds.dtype == torch.int64
    assert bounds.diff().tolist() == list(LENGTHS)


@given(st.lists(st.integers(1, 4 * CHUNK), min_size=1, max_size=12))
def test_groups_have_every_segment_once_and_nothing_is_filled_up_beyond_a_chunk(lengths: list[int]) -> None:
    groups = equal_chunks(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    chunks = [{-(-lengths[index] // CHUNK) for index in group} for group in groups]
    assert all(len(number) == 1 for number in chunks)
    assert len(set.union(*chunks)) == len(groups)


def test_every_linear_layer_of_a_model_keeps_segments_apart() -> None:
    sizes = {"layers": 5, "attention_layers": [1, 4]}
    layers = load_backbone(BackboneConfig("qwen3_5", tiny=sizes)).get_decoder().layers
    mixers = [layer.linear_attn for layer in layers if hasattr(layer, "linear_attn")]
    assert [type(module) for module in mixers] == [SegmentedDeltaNet] * 3


def test_what_would_undo_tokens_is_refused_since_a_state_cannot_be() -> None:
    batch = collate(mixed("qwen3_5", (1,)), processor("qwen3_5").pad_token_id)
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens: drafts out of the prompt"):
        generate(prefers_pointing("qwen3_5"), batch, prompt_lookup_num_tokens=2)


def test_a_cache_of_fixed_size_generates_the_same() -> None:
    model, pad = prefers_pointing("qwen3_5"), processor("qwen3_5").pad_token_id
    batch = collate(mixed("qwen3_5"), pad, side="left")
    for options in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}):
        static = generate(model, batch, cache_implementation="static", **options)
        assert torch.equal(static, generate(model, batch, **options))


@pytest.mark.parametrize("empty", [False, True], ids=["read", "left to be filled"])
def test_weights_of_multi_token_prediction_are_left_out(empty: bool, tmp_path: Path) -> None:
    folder = stock_folder(tmp_path, "qwen3_5")
    weights = load_file(folder / "model.safetensors")
    weights["mtp.layers.0.self_attn.q_proj.weight"] = torch.zeros(4, 4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_backbone(BackboneConfig("qwen3_5", str(folder)), empty=empty)
    assert not any("mtp" in name for name in model.state_dict())
