"""Windows and images that see themselves whole: kernels that can compute the one mask."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Gemma3TextConfig
from transformers.models.gemma3 import modeling_gemma3

from v1lit.backbones import attention_kernels
from v1lit.backbones.attention import attend_segments, choose_attention, stock_attention
from v1lit.backbones.attention_kernels import KERNELS, dense_mask
from v1lit.backbones.image_blocks import FULL, SLIDING, padded_masks, windows
from v1lit.backbones.segments import Segments
from v1lit.pointer.layout import TokenLayout

pytestmark = pytest.mark.dependencies

SCALE, IMAGE, START = 0.3, 7, 100
Kind = tuple[bool, int]
"""Whether they are image tokens, and how many."""
EXAMPLE = st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=4)
EXAMPLES = st.lists(EXAMPLE, min_size=1, max_size=3)
FEW = settings(max_examples=20)
WINDOWS = st.one_of(st.none(), st.integers(1, 9))


def segments_of(examples: list[list[Kind]], kernel: str = "eager") -> Segments:
    """A row of examples that are made of stretches of text and of image tokens, as the model finds it."""
    ids = [
        [IMAGE if image else 1 for image, count in stretches for _ in range(count)] for stretches in examples
    ]
    plain = Segments(tuple(map(len, ids)), kernel)
    row = torch.tensor([token for example in ids for token in example])[None]
    blocks = TokenLayout.of(row, IMAGE, START, plain).blocks
    return Segments(plain.lengths, kernel, blocks)


ROWS = EXAMPLES.map(segments_of)
SOME = segments_of([[(False, 2), (True, 3), (False, 4)], [(True, 4), (False, 1), (True, 2)], [(False, 6)]])


def draw(tokens: int, heads: tuple[int, int] = (4, 2), width: int = 8) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(tokens, number, width) for number in (heads[0], heads[1], heads[1])]
    return [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]


def with_gradients(segments: Segments, window: int | None, inputs: list[Tensor]) -> list[Tensor]:
    """Output and gradients of a row."""
    output = attend_segments(*inputs, segments, SCALE, window)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [output, *torch.autograd.grad((output * weight).sum(), inputs)]


def check_kernel(name: str, segments: Segments, window: int | None, heads: tuple[int, int] = (4, 2)) -> None:
    inputs = draw(segments.tokens, heads)
    one, other = (Segments(segments.lengths, kernel, segments.blocks) for kernel in ("eager", name))
    torch.testing.assert_close(with_gradients(other, window, inputs), with_gradients(one, window, inputs))


def sees(segments: Segments, window: int | None, query: int, key: int) -> bool:
    """The rule in words: of its segment what is before it and not too far, and its own image."""
    owner = [number for number, length in enumerate(segments.lengths) for _ in range(length)]
    together = any(start <= query < stop and start <= key < stop for start, stop in segments.blocks)
    near = window is None or query - key < window
    return owner[query] == owner[key] and near and (key <= query or together)


@FEW
@given(ROWS, WINDOWS)
def test_the_dense_mask_is_the_rule(segments: Segments, window: int | None) -> None:
    tokens = range(segments.tokens)
    rule = [[sees(segments, window, query, key) for key in tokens] for query in tokens]
    assert dense_mask(segments, window=window).tolist() == rule


@FEW
@given(EXAMPLE.filter(lambda example: any(image for image, _ in example)), st.integers(4, 9))
def test_the_rule_is_that_of_the_stock_class(example: list[Kind], window: int) -> None:
    """For windows of an image at least; below, versions of transformers differ."""
    parted = [(image, count) for image, count in example for image, count in ((image, count), (False, 1))]
    segments = segments_of([parted])
    config = Gemma3TextConfig(num_hidden_layers=2, layer_types=[SLIDING, FULL], sliding_window=window)
    config._attn_implementation = "sdpa"
    embeds = torch.zeros(1, segments.tokens, 4)
    types = (segments.block_ids("cpu") >= 0).int()[None]
    stock = modeling_gemma3.Gemma3ForConditionalGeneration.create_masks_for_generate(
        config, embeds, torch.ones(1, segments.tokens), None, None, token_type_ids=types
    )
    ours = padded_masks(config, embeds, torch.ones(1, segments.tokens), segments.blocks)
    for kind, reach in ((FULL, None), (SLIDING, window)):
        assert torch.equal(stock[kind], ours[kind])
        assert torch.equal(ours[kind][0, 0], dense_mask(segments, window=reach))


@FEW
@given(ROWS, WINDOWS)
def test_sdpa_computes_it_forwards_and_backwards(segments: Segments, window: int | None) -> None:
    check_kernel("sdpa", segments, window)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_computes_it_forwards() -> None:
    inputs = [x.detach().float() for x in draw(SOME.tokens, width=16)]
    flex = Segments(SOME.lengths, "flex_attention", SOME.blocks)
    wanted = attend_segments(*inputs, SOME, SCALE, 4)
    torch.testing.assert_close(attend_segments(*inputs, flex, SCALE, 4), wanted)


def reference(
    q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor, left: int, right: int, scale: float
) -> Tensor:
    """Variable-length attention as flash-attn documents it: the last query and the last key match."""
    outputs, times = [], q.shape[1] // k.shape[1]
    for q_span, k_span in zip(q_bounds.unfold(0, 2, 1), k_bounds.unfold(0, 2, 1), strict=True):
        query = q[q_span[0] : q_span[1]]
        key, value = (x[k_span[0] : k_span[1]].repeat_interleave(times, 1) for x in (k, v))
        places = torch.arange(len(query))[:, None] + len(key) - len(query)
        away = torch.arange(len(key)) - places
        seen = torch.ones_like(away, dtype=torch.bool)
        seen &= away >= -left if left >= 0 else seen
        seen &= away <= right if right >= 0 else seen
        scores = torch.einsum("qhd,khd->hqk", query, key) * scale
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value))
    return torch.cat(outputs)


def check_bounds(bounds: Tensor, longest: int, tokens: int) -> None:
    assert bounds.dtype == torch.int32
    assert (bounds[0], bounds[-1], bounds.diff().max()) == (0, tokens, longest)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn and torch's own, computed on the CPU by their documentation."""

    def flash(q: Tensor, k: Tensor, v: Tensor, *bounds: Any, softmax_scale: float, **options: Any) -> Tensor:
        (left, right), causal = options.pop("window_size"), options.pop("causal")
        assert not options
        check_bounds(bounds[0], bounds[2], len(q))
        check_bounds(bounds[1], bounds[3], len(k))
        return reference(q, k, v, *bounds[:2], left, 0 if causal else right, softmax_scale)

    def varlen(q: Tensor, k: Tensor, v: Tensor, *bounds: Any, scale: float, **options: Any) -> Tensor:
        left, right = options.pop("window_size")
        check_bounds(bounds[0], bounds[2], len(q))
        check_bounds(bounds[1], bounds[3], len(k))
        return reference(q, k, v, *bounds[:2], left, right, scale)

    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(import_module("torch.nn.attention.varlen"), "varlen_attn", varlen)


@pytest.mark.parametrize("name", ["flash_attention_2", "varlen"])
@pytest.mark.usefixtures("libraries")
def test_libraries_without_such_a_mask_compute_it_in_two_passes(name: str) -> None:
    one_image = segments_of([[(False, 3), (True, 4), (False, 9)]])
    text = segments_of([[(False, 5)], [(False, 3)]])
    for segments in (SOME, one_image, text):
        for window in (None, 4, 6):
            for heads in ((4, 2), (2, 2)):
                check_kernel(name, segments, window, heads)


@pytest.mark.parametrize("name", ["eager", "sdpa", "flash_attention_2", "varlen"])
@pytest.mark.usefixtures("libraries")
def test_nothing_of_a_segment_reaches_another(name: str) -> None:
    """Not a bit of the others changes, and no gradient comes from them."""
    segments, inputs = Segments(SOME.lengths, name, SOME.blocks), draw(SOME.tokens)
    first, second = SOME.lengths[0], sum(SOME.lengths[:2])
    output = attend_segments(*inputs, segments, SCALE, 5)
    others = [x.detach().clone() for x in inputs]
    for x in others:
        x[first:second] = torch.randn(x[first:second].shape, dtype=x.dtype)
    changed = attend_segments(*others, segments, SCALE, 5)
    for kept in (slice(0, first), slice(second, None)):
        assert torch.equal(output[kept], changed[kept])
    assert not torch.equal(output[first:second], changed[first:second])
    for gradient in torch.autograd.grad(output[first:second].sum(), inputs):
        assert not gradient[:first].any()
        assert not gradient[second:].any()


def test_a_window_of_the_longest_segment_is_none() -> None:
    """Then there is nothing to mask, and libraries take their fastest way."""
    inputs = [x.detach() for x in draw(9)]
    attention_kernels._runs.cache_clear()
    attend_segments(*inputs, Segments((4, 5)), SCALE, 5)
    assert [mask for _, _, mask in attention_kernels._runs(Segments((4, 5)), None, torch.device("cpu"))] == [
        None
    ] * 2
    assert attention_kernels._runs.cache_info().hits == 1


def test_segments_without_an_image_need_no_mask() -> None:
    runs = attention_kernels._runs(SOME, None, torch.device("cpu"))
    assert [(length, times, mask is None) for length, times, mask in runs] == [
        (9, 1, False),
        (7, 1, False),
        (6, 1, True),
    ]


# ---------------------------------------------------------------- which kernel


def test_what_cannot_compute_it_says_so() -> None:
    inputs = draw(SOME.tokens)
    for segments, window in (
        (Segments(SOME.lengths, "xformers"), 4),
        (Segments((22,), "xformers", ((1, 3),)), None),
    ):
        with pytest.raises(ValueError, match="attention=xformers: xformers computes causal attention alone"):
            attend_segments(*inputs, segments, SCALE, window)
    with pytest.raises(ValueError, match=r"xformers computes causal attention alone.*these run: sdpa, eager"):
        choose_attention("xformers", "cpu", torch.float32, causal=False)
    assert (
        "xformers: computes causal attention alone"
        in choose_attention("auto", "cpu", torch.float32, False).line
    )


def test_a_trial_of_a_kernel_has_a_window_and_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, Any]] = []

    def attend(
        query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: Any
    ) -> Tensor:
        seen.append((segments.blocks, window))
        return query

    for causal in (True, False):
        assert attention_kernels._trial(attend, torch.device("cpu"), torch.float32, causal) is None
    assert seen == [((), None), (((100, 160),), 80)]
    assert KERNELS["flex_attention"].causal_only is False


def test_flash_attention_of_transformers_is_not_used_where_images_see_themselves_whole() -> None:
    assert stock_attention("flash_attention_2", blocks=True) == "sdpa"
    assert stock_attention("eager", blocks=True) == "eager"


def test_layers_with_a_window_are_told_by_the_config() -> None:
    config = Gemma3TextConfig(num_hidden_layers=7, sliding_window=9)
    assert windows(config) == [9] * 5 + [None, 9]


def test_masks_of_a_static_cache_are_refused() -> None:
    config = Gemma3TextConfig(num_hidden_layers=2)
    with pytest.raises(ValueError, match="generate without cache_implementation"):
        padded_masks(config, torch.zeros(1, 4, 8), {FULL: None}, ((1, 3),))  # type: ignore[arg-type]
