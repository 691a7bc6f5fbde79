"""The chunked loss equals the reference, the reference equals the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v1lit.pointer.config import PointerConfig
from v1lit.pointer.loss import (
    LossInputs,
    LossTerms,
    cross_entropy,
    first_pointers,
    pointer_loss,
    reference_loss,
)

HIDDEN, VOCABULARY, START, POINTERS = 16, 40, 37, 9
OPTIONS = {
    "published": PointerConfig(z_weight=1e-2, z_top_k=8),
    "all logits in z": PointerConfig(z_weight=1e-2),
    "no z": PointerConfig(z_weight=0.0),
    "separate": PointerConfig(loss="separate", z_weight=0.0),
    "smoothed": PointerConfig(z_weight=1e-2, label_smoothing=0.1),
    "separate smoothed": PointerConfig(loss="separate", z_weight=0.0, label_smoothing=0.1),
}


def make_inputs(
    seed: int, positions: int, pointers: int = POINTERS, share: float = 0.4, gate: bool = False
) -> LossInputs:
    """Random double-precision inputs; rows have between one and all pointers."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(positions, pointers, generator=random).double()
    available = (
        torch.randint(1, pointers + 1, (positions,), generator=random)
        if pointers
        else torch.zeros(positions).long()
    )
    mask = torch.arange(pointers)[None] >= available[:, None]
    is_pointer = (torch.rand(positions, generator=random) < share) & (available > 0)
    text = torch.randint(0, START, (positions,), generator=random)
    chosen = (torch.rand(positions, generator=random) * available).long()
    return LossInputs(
        hidden=torch.randn(positions, HIDDEN, generator=random).double().requires_grad_(),
        head=torch.randn(VOCABULARY, HIDDEN, generator=random).double().requires_grad_(),
        pointer_logits=scores.masked_fill(mask, torch.finfo(torch.float32).min).requires_grad_(),
        labels=torch.where(is_pointer, START + chosen, text),
        gate=torch.rand(positions, 1, generator=random).double().requires_grad_() if gate else None,
        weights=torch.rand(positions, generator=random).double() + 0.5 if gate else None,
    )


def gradients(terms: LossTerms, inputs: LossInputs, z_weight: float) -> list[torch.Tensor]:
    loss, _ = terms.total(z_weight)
    wanted = [t for t in (inputs.hidden, inputs.head, inputs.pointer_logits, inputs.gate) if t is not None]
    return list(torch.autograd.grad(loss, wanted, allow_unused=True))


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    positions=st.integers(1, 40),
    chunk=st.integers(1, 50),
    pointers=st.integers(1, POINTERS),
    share=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_chunks_give_the_reference_loss_and_gradients(
    options: PointerConfig, gate: bool, seed: int, positions: int, chunk: int, pointers: int, share: float
) -> None:
    inputs = make_inputs(seed, positions, pointers, share, gate)
    expected = reference_loss(inputs, START, options)
    ours = pointer_loss(inputs, START, replace(options, loss_chunk=chunk))
    assert torch.equal(ours.predictions, expected.predictions)
    assert ours.counts == expected.counts
    for name, value in expected.sums.items():
        torch.testing.assert_close(ours.sums[name], value)
    for mine, theirs in zip(
        gradients(ours, inputs, options.z_weight), gradients(expected, inputs, options.z_weight), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_one_position_by_hand() -> None:
    """Vocabulary logits 1 and 2, pointer logits 3 and a masked one; the target is pointer 0."""
    inputs = LossInputs(
        hidden=torch.tensor([[1.0]]),
        head=torch.tensor([[1.0], [2.0]]),
        pointer_logits=torch.tensor([[3.0, torch.finfo(torch.float32).min]]),
        labels=torch.tensor([2]),
        gate=None,
    )
    terms = reference_loss(inputs, 2, PointerConfig(z_weight=0.5))
    lse = math.log(math.exp(1) + math.exp(2) + math.exp(3))
    assert terms.sums["joint"].item() == pytest.approx(lse - 3.0, rel=1e-6)
    assert terms.sums["z"].item() == pytest.approx(lse**2, rel=1e-6)
    assert terms.total(0.5)[0].item() == pytest.approx(lse - 3.0 + 0.5 * lse**2, rel=1e-6)
    assert terms.predictions.tolist() == [2]


def test_smoothing_is_spread_over_classes_that_are_not_masked() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0, torch.finfo(torch.float32).min]])
    kept = torch.nn.functional.cross_entropy(logits[:, :3], torch.tensor([2]), label_smoothing=0.3)
    assert cross_entropy(logits, torch.tensor([2]), torch.ones(1), 0.3).item() == pytest.approx(
        kept.item(), rel=1e-6
    )


def test_weights_make_a_weighted_mean() -> None:
    inputs = make_inputs(0, 12)
    losses = torch.stack(
        [reference_loss(_one(inputs, n), START, PointerConfig(z_weight=0.0)).sums["joint"] for n in range(12)]
    )
    weights = torch.linspace(0.5, 3.0, 12).double()
    terms = pointer_loss(replace(inputs, weights=weights), START, PointerConfig(z_weight=0.0, loss_chunk=5))
    torch.testing.assert_close(terms.total(0.0)[0], (weights * losses).sum() / weights.sum())


def test_first_pointers_of_runs() -> None:
    labels = torch.tensor([[START, START + 1, 3, START + 2, -100, START], [1, 2, START + 3, START + 3, 4, 5]])
    expected = torch.tensor([[1, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0]]).bool()
    assert torch.equal(first_pointers(labels, START), expected)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_nothing_supervised_gives_zero_with_gradients(options: PointerConfig) -> None:
    inputs = make_inputs(0, 0)
    terms = pointer_loss(inputs, START, options)
    loss, _ = terms.total(options.z_weight)
    assert loss.item() == 0.0
    assert all(g is None or g.abs().sum() == 0 for g in gradients(terms, inputs, options.z_weight))


def test_no_tensor_of_all_logits_is_kept_for_the_backward_pass() -> None:
    """Chunks are recomputed; the reference, which keeps all logits, shows that the count would notice."""
    inputs = make_inputs(0, 512)

    def largest_saved(function: Callable[..., LossTerms]) -> int:
        sizes = [0]

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            function(inputs, START, PointerConfig(loss_chunk=16))
        return max(sizes)

    assert largest_saved(reference_loss) >= 512 * START
    assert largest_saved(pointer_loss) <= 512 * HIDDEN


def _one(inputs: LossInputs, n: int) -> LossInputs:
    return LossInputs(
        inputs.hidden[n : n + 1], inputs.head, inputs.pointer_logits[n : n + 1], inputs.labels[n : n + 1]
    )
