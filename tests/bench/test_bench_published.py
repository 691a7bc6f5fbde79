"""The baseline is fair: on the same batch it gives v1lit's loss and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import step
import torch
from measure import alternate
from plain import without_pointers


@pytest.fixture(scope="module")
def bench() -> step.Bench:
    bench = step.Bench(step.QUICK)
    with torch.no_grad():
        for parameter in bench.model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)  # large weights: decisions far from even
    return bench


def gradients(bench: step.Bench, loss: Callable[[], torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    bench.model.zero_grad()
    value = loss()
    value.backward()
    return value.item(), {
        name: parameter.grad.clone()
        for name, parameter in bench.model.named_parameters()
        if parameter.grad is not None
    }


def test_the_published_way_gives_the_same_loss_and_gradients(
    bench: step.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "Z_WEIGHT", 1e-2)  # heavy enough to be seen
    theirs, expected = gradients(bench, bench.published)
    ours, found = gradients(bench, lambda: bench.v1lit(step.TOP_K))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert found.keys() == expected.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        error = (found[name] - value).abs().max().item()
        assert error <= max(1e-4 * value.abs().max().item(), 1e-7 * largest), name


def test_the_batch_of_the_comparison_points_and_is_padded(bench: step.Bench) -> None:
    start = bench.case.size.vocabulary
    assert (bench.batch.flat_labels >= start).sum() > 20
    assert (bench.batch.attention_mask == 0).any()


def test_plain_fine_tuning_learns_as_many_tokens_and_none_is_a_pointer(bench: step.Bench) -> None:
    start = bench.case.size.vocabulary
    plain = bench.plain_batch
    assert plain.flat_labels.max() < start
    assert plain.flat_ids.max() < start
    assert torch.equal(plain.flat_labels == -100, bench.batch.flat_labels == -100)
    ids = torch.tensor([3, start, start + 899, start + 905])
    assert without_pointers(ids, start).tolist() == [3, 100, 999, 105]


def test_plain_and_stock_fine_tuning_compute_one_loss(bench: step.Bench) -> None:
    """Where there is no pointer, our kernels on a flat row and transformers on a padded batch agree."""
    plain = bench.plain_batch
    ours = step.plain_loss(
        bench.model.backbone, bench.model.family, plain, bench.model.attention, z_weight=0.0
    )
    theirs = step.stock_loss(bench.model.backbone, plain, bench.processor.image_token_id)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_every_contender_trains(bench: step.Bench) -> None:
    works = {**bench.steps(), "plain": bench.plain_step(), "transformers": bench.stock_step()}
    before = bench.model.pointer_head.query.weight.clone()
    assert alternate(works, 1).keys() == works.keys()
    assert not torch.equal(before, bench.model.pointer_head.query.weight)
