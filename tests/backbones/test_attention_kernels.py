"""Every kernel computes causal attention inside each segment, with the library's own arguments."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from v1lit.backbones import attention_kernels
from v1lit.backbones.attention import attend_segments
from v1lit.backbones.attention_kernels import KERNELS, dense_mask
from v1lit.backbones.segments import Segments

pytestmark = pytest.mark.dependencies

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=5).map(tuple)
# Heads, and heads of keys and values.
HEADS = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)])
SCALE = 0.3
FLEX_UNCOMPILED = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def draw(
    lengths: tuple[int, ...], heads: tuple[int, int], width: int = 8, **kind: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of a row."""
    torch.manual_seed(0)
    shapes = [(sum(lengths), number, width) for number in (heads[0], heads[1], heads[1])]
    kind = {"dtype": torch.float64, **kind}
    query, key, value = (torch.randn(shape, **kind).requires_grad_() for shape in shapes)
    return query, key, value


def alone(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
    """Token by token, over the tokens that it may see."""
    groups, outputs, start = query.shape[1] // key.shape[1], [], 0
    for length in lengths:
        for token in range(start, start + length):
            keys, values = (x[start : token + 1].repeat_interleave(groups, 1) for x in (key, value))
            weights = (torch.einsum("hd,khd->hk", query[token], keys) * scale).softmax(-1)
            outputs.append(torch.einsum("hk,khd->hd", weights, values))
        start += length
    return torch.stack(outputs)


def check(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Any, wanted: Tensor, **close: Any
) -> None:
    """Output and gradients as wanted."""
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = weight.to(wanted)
    expected = torch.autograd.grad((wanted * weight).sum(), inputs)
    output = attend(*inputs)
    assert output.shape == wanted.shape
    torch.testing.assert_close(output, wanted, **close)
    gradients = torch.autograd.grad((output * weight).sum(), inputs)
    for name, gradient, right in zip(("query", "key", "value"), gradients, expected, strict=True):
        torch.testing.assert_close(gradient, right, **close, msg=lambda m, name=name: f"{name}: {m}")


@given(LENGTHS)
def test_the_dense_mask_shows_each_token_its_own_segment_up_to_itself(lengths: tuple[int, ...]) -> None:
    owner = [number for number, length in enumerate(lengths) for _ in range(length)]
    visible = [[owner[q] == owner[k] and k <= q for k in range(len(owner))] for q in range(len(owner))]
    assert dense_mask(Segments(lengths)).tolist() == visible


@pytest.mark.parametrize("name", ["eager", "sdpa"])
@given(lengths=LENGTHS, heads=HEADS)
def test_each_segment_is_computed_as_if_alone(
    name: str, lengths: tuple[int, ...], heads: tuple[int, int]
) -> None:
    inputs = draw(lengths, heads)
    wanted = alone(*inputs, lengths, SCALE)
    check(lambda q, k, v: attend_segments(q, k, v, Segments(lengths, name), SCALE), inputs, wanted)


@pytest.mark.slow
@FLEX_UNCOMPILED
@pytest.mark.parametrize("lengths", [(5,), (1, 1, 1), (3, 7, 1, 2)])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_flex_computes_the_same_forwards(lengths: tuple[int, ...], heads: tuple[int, int]) -> None:
    # In float32, and without gradients: that is what it has on a CPU.
    inputs = [x.detach().float() for x in draw(lengths, heads, width=16)]
    wanted = attend_segments(*inputs, Segments(lengths, "eager"), SCALE)
    torch.testing.assert_close(attend_segments(*inputs, Segments(lengths, "flex_attention"), SCALE), wanted)


@FLEX_UNCOMPILED
@pytest.mark.parametrize("name", ["eager", "sdpa", "flex_attention"])
def test_other_segments_are_not_seen_at_all(name: str) -> None:
    lengths, heads = (4, 1, 6, 4), (4, 2)
    before = [x.detach().float() for x in draw(lengths, heads, width=16)]
    first = attend_segments(*before, Segments(lengths, name), SCALE)
    after = [x.clone() for x in before]
    for x in after:
        # Where no other segment is touched, not even NaN gets out; with a mask it is multiplied by zero.
        x[5:11] = float("nan") if name == "sdpa" else torch.randn(x[5:11].shape)
    second = attend_segments(*after, Segments(lengths, name), SCALE)
    others = [*range(5), *range(11, 15)]
    assert torch.equal(first[others], second[others])
    assert not torch.equal(first[5:11], second[5:11])


def test_no_gradient_leaves_its_segment() -> None:
    for name in ("eager", "sdpa"):
        inputs = draw((4, 3, 5), (4, 2))
        attend_segments(*inputs, Segments((4, 3, 5), name), SCALE)[4:7].sum().backward()
        for x in inputs:
            assert x.grad is not None
            assert (x.grad[4:7] != 0).any()
            assert (x.grad[:4] == 0).all()
            assert (x.grad[7:] == 0).all()


def test_half_precision_rounds_and_does_no_more() -> None:
    lengths = (5, 2, 9)
    exact = draw(lengths, (4, 2))
    wanted = attend_segments(*exact, Segments(lengths, "eager"), SCALE)
    for name in ("eager", "sdpa"):
        output = attend_segments(*(x.bfloat16() for x in exact), Segments(lengths, name), SCALE)
        assert output.dtype == torch.bfloat16
        assert (output - wanted).abs().max() < 0.03


def test_neighbours_of_one_length_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    stock, batches = torch.nn.functional.scaled_dot_product_attention, []

    def counted(query: Tensor, *args: Any, **options: Any) -> Tensor:
        batches.append(tuple(query.shape[::2]))
        return stock(query, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    lengths = (4, 4, 4, 2, 4)
    attend_segments(*draw(lengths, (4, 2)), Segments(lengths), SCALE)
    assert batches == [(3, 4), (1, 2), (1, 4)]


def test_key_heads_are_not_repeated_on_a_cpu() -> None:
    inputs = [x.detach().float() for x in draw((5, 3), (4, 2), width=16)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attend_segments(*inputs, Segments((5, 3)), SCALE)
    called = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in called
    assert not any("repeat" in name for name in called)


def test_segments_that_do_not_fill_the_row_are_refused() -> None:
    for lengths in [(3,), (3, 3)]:
        with pytest.raises(ValueError, match=rf"segments of {sum(lengths)} tokens for a query of 5"):
            attend_segments(*draw((5,), (2, 2)), Segments(lengths), SCALE)


# ---- libraries that need a GPU: stand-ins check what they are called with ----------------------------------


def dense(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float) -> Tensor:
    return attend_segments(query, key, value, Segments(tuple(bounds.diff().tolist()), "eager"), scale)


def check_bounds(bounds: Tensor, longest: int, query: Tensor) -> None:
    assert bounds.dtype == torch.int32
    assert bounds.device == query.device
    assert bounds.ndim == 1
    assert (bounds[0], bounds[-1]) == (0, len(query))
    assert longest == bounds.diff().max()
    assert type(longest) is int


def flash_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signature is that of flash-attn 2.8.3, as far as it is used."""

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        assert (dropout_p, causal, window_size) == (0.0, True, (-1, -1))
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        check_bounds(cu_seqlens_q, max_seqlen_q, q)
        check_bounds(cu_seqlens_k, max_seqlen_k, k)
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        assert softmax_scale is not None
        return dense(q, k, v, cu_seqlens_q, softmax_scale)

    library = ModuleType("flash_attn")
    library.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", library)


def varlen_stand_in(monkeypatch: pytest.MonkeyPatch, shares_heads: bool = True) -> None:
    """The signature is the installed torch's, or as in 2.11, where keys must have all heads."""
    library = import_module("torch.nn.attention.varlen")
    signature = inspect.signature(library.varlen_attn)
    if not shares_heads:
        names = ("return_aux", "scale", "window_size")
        kept = [p for p in signature.parameters.values() if p.kind != p.KEYWORD_ONLY or p.name in names]
        signature = signature.replace(parameters=kept)

    def varlen_attn(*args: Any, **options: Any) -> Tensor:
        given = signature.bind(*args, **options)
        given.apply_defaults()
        a = SimpleNamespace(**given.arguments)
        # What torch asks before it takes a backend.
        assert torch.backends.cuda.flash_sdp_enabled()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        # Nothing to the right of a token is seen, everything to its left.
        assert tuple(a.window_size) == (-1, 0)
        assert getattr(a, "enable_gqa", False) == (a.query.shape[1] != a.key.shape[1])
        assert torch.equal(a.cu_seq_q, a.cu_seq_k)
        check_bounds(a.cu_seq_q, a.max_q, a.query)
        check_bounds(a.cu_seq_k, a.max_k, a.key)
        return dense(a.query, a.key, a.value, a.cu_seq_q, a.scale)

    varlen_attn.__signature__ = signature  # type: ignore[attr-defined]
    monkeypatch.setattr(library, "varlen_attn", varlen_attn)


def xformers_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signatures are those of xformers 0.0.35, as far as they are used."""

    attention_kernels._block_diagonal_mask.cache_clear()

    class BlockDiagonalCausalMask:
        built = 0

        def __init__(self, lengths: list[int]) -> None:
            type(self).built += 1
            self.lengths = lengths

        @classmethod
        def from_seqlens(
            cls, q_seqlen: list[int], kv_seqlen: list[int] | None = None, *, device: torch.device
        ) -> BlockDiagonalCausalMask:
            assert kv_seqlen is None
            # The library compares it with a device; a string would not be equal to one.
            assert isinstance(device, torch.device)
            return cls(q_seqlen)

    def memory_efficient_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_bias: Any = None,
        p: float = 0.0,
        scale: float | None = None,
    ) -> Tensor:
        assert isinstance(attn_bias, BlockDiagonalCausalMask)
        assert p == 0.0
        # [batch, tokens, heads, head dim]; it has no backward pass where keys have fewer heads.
        assert query.shape == key.shape == value.shape
        assert query.shape[:2] == (1, sum(attn_bias.lengths))
        bounds = torch.tensor([0, *attn_bias.lengths]).cumsum(0)
        assert scale is not None
        return dense(query[0], key[0], value[0], bounds, scale)[None]

    attn_bias = SimpleNamespace(BlockDiagonalCausalMask=BlockDiagonalCausalMask)
    package, ops = ModuleType("xformers"), ModuleType("xformers.ops")
    package.ops = ops  # type: ignore[attr-defined]
    ops.fmha = SimpleNamespace(attn_bias=attn_bias)  # type: ignore[attr-defined]
    ops.memory_efficient_attention = memory_efficient_attention  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


STAND_INS = {
    "flash_attention_2": flash_stand_in,
    "varlen": varlen_stand_in,
    "varlen of torch 2.11": partial(varlen_stand_in, shares_heads=False),
    "xformers": xformers_stand_in,
}


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("lengths", [(5,), (1, 1, 1), (3, 7, 1, 2)])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_adapters_call_their_library_rightly(
    monkeypatch: pytest.MonkeyPatch, name: str, lengths: tuple[int, ...], heads: tuple[int, int]
) -> None:
    STAND_INS[name](monkeypatch)
    kernel = name.partition(" ")[0]
    inputs = draw(lengths, heads)
    wanted = attend_segments(*inputs, Segments(lengths, "eager"), SCALE)
    check(lambda q, k, v: attend_segments(q, k, v, Segments(lengths, kernel), SCALE), inputs, wanted)


def test_varlen_leaves_the_backends_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    varlen_stand_in(monkeypatch)
    attend_segments(*draw((3, 4), (4, 2)), Segments((3, 4), "varlen"), SCALE)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.math_sdp_enabled()


def test_torch_chooses_flash_where_cudnn_is_not_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own choice for a row that cuDNN could do; torch 2.11 has flash alone, and no choice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    library = import_module("torch.nn.attention.varlen")
    if not hasattr(library, "_select_backend"):
        pytest.skip("this torch has one backend")
    monkeypatch.setattr(library, "_cudnn_rejection_reasons", lambda *_: [])
    bounds = torch.tensor([0, 300], dtype=torch.int32)
    row = (*draw((300,), (4, 2)), bounds, bounds, 300, [-1, 0])
    assert library._select_backend(*row) == SDPBackend.CUDNN_ATTENTION.value
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert library._select_backend(*row) == SDPBackend.FLASH_ATTENTION.value


def test_the_mask_of_xformers_is_built_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    xformers_stand_in(monkeypatch)
    mask = sys.modules["xformers.ops"].fmha.attn_bias.BlockDiagonalCausalMask
    for lengths in ((3, 4), (7,)):
        mask.built = 0
        for _ in range(3):
            attend_segments(*draw(lengths, (4, 2)), Segments(lengths, "xformers"), SCALE)
        assert mask.built == 1


@pytest.mark.parametrize("lengths", [(5,), (1, 1, 1), (3, 7, 1, 2)])
def test_the_mask_of_xformers_is_the_dense_mask(lengths: tuple[int, ...]) -> None:
    bias = pytest.importorskip("xformers.ops.fmha.attn_bias", reason="xformers is not installed")
    mask = bias.BlockDiagonalCausalMask.from_seqlens(list(lengths), device=torch.device("cpu"))
    added = mask.materialize((sum(lengths), sum(lengths)))
    assert torch.equal(added == 0, dense_mask(Segments(lengths)))
    assert torch.equal(added == float("-inf"), ~dense_mask(Segments(lengths)))


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
@pytest.mark.parametrize("name", KERNELS)
def test_on_a_gpu_every_kernel_computes_the_same(name: str, heads: tuple[int, int]) -> None:
    device, lengths = torch.device("cuda"), (130, 1, 1, 500, 77)
    reason = KERNELS[name].reason(device, torch.bfloat16)
    if reason is not None:
        pytest.skip(f"no such kernel here: {name} {reason}")
    exact = draw(lengths, heads, width=64)
    wanted = attend_segments(*exact, Segments(lengths, "eager"), 0.125)
    rounded = [x.detach().to(device, torch.bfloat16).requires_grad_() for x in exact]
    output = attend_segments(*rounded, Segments(lengths, name), 0.125)
    torch.testing.assert_close(output.double().cpu(), wanted, rtol=0.02, atol=0.02)
    weight = torch.randn(wanted.shape, dtype=torch.float64)
    expected = torch.autograd.grad((wanted * weight).sum(), exact)
    gradients = torch.autograd.grad((output * weight.to(output)).sum(), rounded)
    for gradient, right in zip(gradients, expected, strict=True):
        error = (gradient.double().cpu() - right).norm() / right.norm()
        assert error < 0.02
