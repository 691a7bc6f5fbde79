"""Every implementation of the joint loss is as good as the reference, whose formulas are checked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.loss_cases import (
    DEVICE,
    FAST,
    FAST_CASES,
    INTERPRETED,
    OPTIONS,
    SHAPES,
    Shape,
    assert_as_good_as_reference,
    assert_small_errors,
    errors,
    make_rows,
    results,
    with_gradients,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from v1lit.labels import first_pointers
from v1lit.pointer.joint_loss import LossOptions, Pointers, pointer_cross_entropy


@pytest.mark.parametrize("gate", [False, True], ids=["", "gate"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(("implementation", "options", "dtype"), FAST_CASES)
def test_loss_and_gradients_have_the_error_of_the_reference(
    implementation: str, shape: Shape, options: dict[str, Any], dtype: torch.dtype, gate: bool
) -> None:
    rows = make_rows(shape, dtype, gate=gate)
    ours = rows.loss(implementation=implementation, chunk=5, **options)
    expected = rows.loss(implementation="reference", **options)
    truth = results(rows.to(torch.float64), implementation="reference", **options)
    assert_small_errors(with_gradients(rows, ours.loss), with_gradients(rows, expected.loss), truth, dtype)
    assert ours.sums.keys() == expected.sums.keys() == ours.counts.keys()
    for name, count in expected.counts.items():
        torch.testing.assert_close(ours.counts[name], count)
    if dtype in (torch.float64, torch.float32):
        assert torch.equal(ours.predictions, expected.predictions)
        for name, value in expected.sums.items():
            torch.testing.assert_close(ours.sums[name], value)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("implementation", "options", "dtype"), FAST_CASES)
def test_every_reduction_has_the_error_of_the_reference(
    implementation: str, reduction: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    rows = make_rows(SHAPES["packed, some without"], dtype)
    upstream = torch.linspace(-2, 3, len(rows.labels), device=DEVICE) if reduction == "none" else None
    given = {"reduction": reduction, "upstream": upstream, **options}
    assert_as_good_as_reference(
        lambda rows: results(rows, implementation=implementation, chunk=7, **given),
        lambda rows: results(rows, implementation="reference", **given),
        rows,
    )


@pytest.mark.parametrize("implementation", FAST)
@settings(max_examples=8 if INTERPRETED else 25)
@given(
    seed=st.integers(0, 1000),
    chunk=st.one_of(st.none(), st.integers(1, 40)),
    sequences=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=5),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_chunks_may_cut_sequences_anywhere(
    implementation: str, seed: int, chunk: int | None, sequences: list[tuple[int, int]], share: float
) -> None:
    positions, image_tokens = zip(*sequences, strict=True)
    dtype = torch.float32 if implementation == "triton" else torch.float64
    rows = make_rows(Shape(positions, image_tokens, share), dtype, seed)
    options = {"z_weight": 1e-2, "label_smoothing": 0.1}
    ours = results(rows, implementation=implementation, chunk=chunk, **options)
    found = errors(ours, results(rows, implementation="reference", **options))
    assert max(found.values()) < (1e-11 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("implementation", ["reference", *FAST])
def test_one_position_by_hand(implementation: str) -> None:
    """Vocabulary logits 1 and 2, pointer logits 3 and one that belongs to the next sequence."""
    out = pointer_cross_entropy(
        torch.tensor([[1.0]], device=DEVICE),
        torch.tensor([[1.0], [2.0], [9.0]], device=DEVICE),
        torch.tensor([2], device=DEVICE),
        2,
        Pointers(
            torch.tensor([[2.0]], device=DEVICE),
            torch.tensor([[3.0], [50.0]], device=DEVICE),
            positions=(1, 0),
            image_tokens=(1, 1),
            scale=0.5,
        ),
        LossOptions(z_weight=0.5, implementation=implementation),
    )
    lse = math.log(math.exp(1) + math.exp(2) + math.exp(3))
    assert out.sums["joint"].item() == pytest.approx(lse - 3.0, rel=1e-6)
    assert out.sums["z"].item() == pytest.approx(lse**2, rel=1e-6)
    assert out.loss.item() == pytest.approx(lse - 3.0 + 0.5 * lse**2, rel=1e-6)
    assert out.means(0.5)["z"].item() == pytest.approx(0.5 * lse**2, rel=1e-6)
    assert out.predictions.tolist() == [2]


def test_the_gate_weighs_vocabulary_and_pointers() -> None:
    rows = make_rows(SHAPES["two sequences"], gate=True)
    assert rows.gate is not None
    assert rows.pointers is not None
    by_hand = replace(
        rows,
        gate=None,
        hidden=(1 - rows.gate) * rows.hidden,
        pointers=replace(rows.pointers, queries=rows.gate * rows.pointers.queries),
    )
    for implementation in ("reference", "chunked"):
        expected = by_hand.loss(implementation=implementation).loss
        torch.testing.assert_close(rows.loss(implementation=implementation).loss, expected)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_smoothing_is_spread_over_the_classes_that_a_position_has(implementation: str) -> None:
    """Two sequences, the second without an image: torch's own smoothing over each one's classes."""
    rows = make_rows(Shape(positions=(3, 3), image_tokens=(5, 0)), weights=False)
    losses = rows.loss(implementation=implementation, label_smoothing=0.3, reduction="none").loss
    assert rows.pointers is not None
    text = rows.hidden @ rows.head.T
    scores = rows.pointers.queries @ rows.pointers.keys.T * rows.pointers.scale
    first = F.cross_entropy(
        torch.cat([text, scores], dim=1)[:3], rows.labels[:3], reduction="none", label_smoothing=0.3
    )
    second = F.cross_entropy(text[3:], rows.labels[3:], reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(losses, torch.cat([first, second]))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_nothing_supervised_gives_zero_with_zero_gradients(
    implementation: str, options: dict[str, Any]
) -> None:
    """Gradients are there, so that no rank waits for one."""
    rows = make_rows(SHAPES["nothing supervised"])
    out = rows.loss(implementation=implementation, **options)
    out.loss.backward()
    assert out.loss.item() == 0.0
    assert all(value.item() == 0.0 for value in out.means(0.1).values())
    for name, leaf in rows.leaves().items():
        assert leaf.grad is not None, name
        assert not leaf.grad.any(), name


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_keys_get_a_zero_gradient_where_there_is_no_image(implementation: str) -> None:
    for options in ({}, {"separate": True}):
        rows = make_rows(SHAPES["no image"])
        rows.loss(implementation=implementation, **options).loss.backward()
        assert rows.pointers is not None
        assert rows.pointers.keys.grad is not None
        assert rows.pointers.queries.grad is not None
        assert not rows.pointers.queries.grad.any()


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_weights_make_a_weighted_mean_of_the_losses(implementation: str) -> None:
    """The z-loss included, and the parts that are reported."""
    rows = make_rows(Shape(positions=(12,), image_tokens=(9,)))
    assert rows.weights is not None
    alone = replace(rows, weights=None).loss(z_weight=0.1, reduction="none", implementation=implementation)
    weighted = rows.loss(z_weight=0.1, implementation=implementation)
    weights = rows.weights.double()
    torch.testing.assert_close(weighted.loss, (weights * alone.loss).sum() / weights.sum())
    torch.testing.assert_close(weighted.counts["joint"], weights.sum())
    everything = sum(weighted.means(0.1).values())
    torch.testing.assert_close(everything, weighted.loss.detach())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_pieces_with_a_common_normalizer_add_up_to_one_big_batch(options: dict[str, Any]) -> None:
    """Accumulation steps, or ranks, of very different content; one has nothing to learn from."""
    big = make_rows(Shape(positions=(2, 0, 31, 8), image_tokens=(9, 2, 0, 5)), gate=True)
    whole = big.loss(**options)
    parts = ("text", "pointer") if options.get("separate") else ("joint",)
    counts = torch.stack([whole.counts[name] for name in parts])
    expected = results(big, **options)
    total: dict[str, torch.Tensor] = {}
    for piece in (slice(0, 1), slice(1, 2), slice(2, 4)):
        loss = big.cut(piece).loss(normalizer=counts if len(parts) == 2 else counts[0], **options).loss
        leaves = big.leaves()
        found = torch.autograd.grad(loss, list(leaves.values()))
        for name, value in zip(["loss", *leaves], [loss.detach(), *found], strict=True):
            total[name] = total.get(name, 0) + value
    assert max(errors(total, expected).values()) < 1e-12


def test_tied_embeddings_get_both_gradients() -> None:
    """The head is the embedding table: hidden states depend on it too."""
    for implementation in ("reference", "chunked"):
        rows = make_rows(SHAPES["two sequences"])
        table = rows.head.detach().clone().requires_grad_()
        hidden = table[rows.labels.clamp(max=rows.start - 1)] * 2.0
        loss = replace(rows, hidden=hidden, head=table).loss(implementation=implementation).loss
        (gradient,) = torch.autograd.grad(loss, table)
        if implementation == "reference":
            expected = gradient
        else:
            torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("frozen", ["hidden", "head", "queries", "keys"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen: str, reduction: str) -> None:
    rows, expected = make_rows(SHAPES["two sequences"]), make_rows(SHAPES["two sequences"])
    rows.leaves()[frozen].requires_grad_(False)
    rows.loss(reduction=reduction).loss.sum().backward()
    expected.loss(reduction=reduction).loss.sum().backward()
    for name, leaf in rows.leaves().items():
        if name == frozen:
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, expected.leaves()[name].grad)


def test_nothing_is_learned_under_no_grad() -> None:
    rows = make_rows(SHAPES["two sequences"])
    with torch.no_grad():
        out = rows.loss()
    assert not out.loss.requires_grad
    torch.testing.assert_close(out.loss, rows.loss().loss.detach())


def test_going_backward_twice_is_refused_where_gradients_are_handed_out_once() -> None:
    rows = make_rows(SHAPES["two sequences"])
    loss = rows.loss().loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="reduction='none'"):
        loss.backward()
    losses = rows.loss(reduction="none").loss.sum()
    losses.backward(retain_graph=True)
    losses.backward()


def test_a_factor_on_the_loss_scales_gradients_exactly_in_half_precision() -> None:
    """A third is no number of bfloat16: rounding the factor first would shift every gradient alike."""
    rows = make_rows(SHAPES["packed, some without"], torch.bfloat16)
    (once,) = torch.autograd.grad(rows.loss(reduction="sum").loss, [rows.hidden])
    (third,) = torch.autograd.grad(rows.loss(reduction="sum").loss / 3, [rows.hidden])
    assert torch.equal(third, (once.float() / 3).bfloat16())


@pytest.mark.parametrize("implementation", FAST)
def test_loss_scaling_saves_the_gradient_of_a_confident_position(implementation: str) -> None:
    """Gradients of 1e-5 for the true logit and 1e-8 for the others would vanish in float16."""
    shape = Shape(positions=(1, 1), image_tokens=(3, 0), share=0.0, start=1000, vocabulary=1000)
    rows = make_rows(shape, torch.float16)
    assert rows.pointers is not None
    rows.labels[:] = rows.labels[0]
    with torch.no_grad():
        # Of all logits, that of the label is 18.5 and the others are 0.
        for one in (rows.hidden, rows.pointers.queries):
            one.zero_()[:, 0] = 1.0
        for one in (rows.head, rows.pointers.keys):
            one[:, 0] = 0.0
        rows.head[rows.labels[0], 0] = 18.5
    rows = replace(rows, weights=torch.tensor([5.0, 0.5], device=DEVICE))
    ours = rows.loss(implementation=implementation, reduction="sum").loss * 2**16
    exact = rows.to(torch.float64)
    truth = exact.loss(implementation="reference", reduction="sum").loss * 2**16
    leaves, expected = rows.leaves(), exact.leaves()
    truths = dict(zip(expected, torch.autograd.grad(truth, list(expected.values())), strict=True))
    for name, gradient in zip(leaves, torch.autograd.grad(ours, list(leaves.values())), strict=True):
        assert gradient.isfinite().all(), name
        for row, right in zip(gradient, truths[name], strict=True):
            assert float((row.double() - right).norm()) <= 0.05 * float(right.norm()) + 1e-6, name


@pytest.mark.parametrize("implementation", FAST)
def test_heavy_positions_are_no_infinities_in_float16(implementation: str) -> None:
    rows = make_rows(SHAPES["two sequences"], torch.float16)
    assert rows.weights is not None
    assert_as_good_as_reference(
        lambda rows: results(rows, implementation=implementation, chunk=7),
        lambda rows: results(rows, implementation="reference"),
        replace(rows, weights=500 * rows.weights),
    )


def test_sums_over_many_positions_are_no_infinities_in_float16() -> None:
    """In the head's gradient, 4,096 positions that are wrong alike."""
    shape = Shape(positions=(4096,), image_tokens=(0,), pointers=False, start=4, vocabulary=4)
    rows = make_rows(shape, torch.float16)
    with torch.no_grad():
        rows.hidden.fill_(16.0)
        rows.head.copy_(torch.tensor([[0.0], [1.0], [1.0], [1.0]]).expand_as(rows.head))
    rows = replace(rows, labels=torch.zeros_like(rows.labels), weights=None)
    for implementation in ("reference", "chunked"):
        (gradient,) = torch.autograd.grad(rows.loss(implementation=implementation).loss, [rows.head])
        torch.testing.assert_close(gradient[0], torch.full_like(gradient[0], -16.0))


@pytest.mark.parametrize("implementation", FAST)
def test_labels_and_weights_may_be_columns_of_something(implementation: str) -> None:
    rows = make_rows(SHAPES["packed, some without"], torch.float32)
    assert rows.weights is not None
    strided = replace(
        rows,
        labels=torch.stack([rows.labels, rows.labels + 1], dim=1)[:, 0],
        weights=torch.stack([rows.weights, rows.weights + 1], dim=1)[:, 0],
    )
    assert not strided.labels.is_contiguous()
    found, expected = (results(r, implementation=implementation, chunk=7) for r in (strided, rows))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_autocast_decides_the_type_of_the_products() -> None:
    """As of a linear layer; the gradient of a float32 head is not rounded."""
    rows = make_rows(SHAPES["two sequences"], torch.float32)
    half = results(rows.to(torch.bfloat16))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        out = rows.loss()
    out.loss.backward()
    torch.testing.assert_close(out.loss.detach(), half["loss"])
    assert rows.head.grad is not None
    assert rows.head.grad.dtype == torch.float32
    assert not torch.equal(rows.head.grad, rows.head.grad.bfloat16().float())
    torch.testing.assert_close(rows.head.grad.bfloat16(), half["head"])


def test_first_pointers_of_runs() -> None:
    start = 37
    labels = torch.tensor([[start, start + 1, 3, start + 2, -100, start], [1, 2, start + 3, start + 3, 4, 5]])
    expected = torch.tensor([[1, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0]]).bool()
    assert torch.equal(first_pointers(labels, start), expected)
