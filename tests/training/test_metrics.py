"""Metrics against counts done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v1lit.labels import END
from v1lit.training.metrics import LossMeans, PointingMetrics

pytestmark = pytest.mark.dependencies

V = 10


def compute(targets: list[int], predictions: list[int], ends: bool = False) -> dict[str, float]:
    metrics = PointingMetrics(V, ends)
    metrics.update(torch.tensor(targets), torch.tensor(predictions))
    return {name: float(value) for name, value in metrics.compute().items()}


def test_two_regions_by_hand() -> None:
    #          text  region {3,4,5}  text  region {7}
    targets = [1, V + 3, V + 4, V + 5, 2, V + 7]
    predictions = [1, V + 4, V + 4, 6, 3, V + 8]
    values = compute(targets, predictions)
    assert values["text_accuracy"] == 0.5
    assert values["pointer_accuracy"] == 0.25
    assert values["pointer_first_accuracy"] == 0.0
    assert values["pointer_first_in_region"] == 0.5
    # first run: pointed {4}, and text counts as one patch outside; 1 of {3, 4, 5, outside}; second run: 0
    assert values["region_iou"] == pytest.approx((1 / 4 + 0) / 2)


def test_the_end_of_a_run_is_neither_a_pointer_nor_text() -> None:
    #          text  region {3,4}  end  text  region {7}  end
    targets = [1, V + 3, V + 4, END, 2, V + 7, END]
    predictions = [1, V + 3, END, END, 2, V + 7, V + 7]
    values = compute(targets, predictions, ends=True)
    assert values["end_accuracy"] == 0.5
    assert values["text_accuracy"] == 1.0
    assert values["pointer_accuracy"] == pytest.approx(2 / 3)
    assert values["pointer_first_accuracy"] == values["pointer_first_in_region"] == 1.0
    # first run: an end counts as one patch outside; 1 of {3, 4, outside}; second run: 1
    assert values["region_iou"] == pytest.approx((1 / 3 + 1) / 2)
    without = compute([target for target in targets if target != END], [1, V + 3, END, 2, V + 7])
    assert without == {name: value for name, value in values.items() if name != "end_accuracy"}


def test_nothing_to_count_is_nan() -> None:
    values = compute([1, 2], [1, 3])
    assert values["text_accuracy"] == 0.5
    assert math.isnan(values["pointer_first_in_region"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, V + 8), st.integers(0, V + 8)), min_size=1, max_size=30))
def test_equals_plain_counting(pairs: list[tuple[int, int]]) -> None:
    targets, predictions = (list(side) for side in zip(*pairs, strict=True))
    runs: list[list[int]] = []
    for place, target in enumerate(targets):
        if target >= V:
            if place > 0 and targets[place - 1] >= V:
                runs[-1].append(place)
            else:
                runs.append([place])
    inside = [predictions[run[0]] in {targets[p] for p in run} for run in runs]
    overlaps = []
    for run in runs:
        true = {targets[p] for p in run}
        pointed = {predictions[p] if predictions[p] >= V else -1 for p in run}
        overlaps.append(len(true & pointed) / len(true | pointed))
    values = compute(targets, predictions)
    if runs:
        assert values["pointer_first_in_region"] == pytest.approx(sum(inside) / len(runs))
        assert values["region_iou"] == pytest.approx(sum(overlaps) / len(runs))
    else:
        assert math.isnan(values["region_iou"])


def test_the_parts_of_the_loss_are_means_over_all_positions() -> None:
    """Two batches, or two ranks: a part without positions in one of them is there all the same."""
    means = LossMeans()
    text, pointer = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)
    means.update({"text": text, "pointer": pointer}, {"text": torch.ones(3), "pointer": torch.zeros(3)})
    other = LossMeans()
    text, pointer = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 4.0])
    other.update({"text": text, "pointer": pointer}, {"text": text.sign(), "pointer": pointer.sign()})
    assert set(means.compute()) == {"loss", "loss_text"}
    means.sums, means.counts = means.sums + other.sums, means.counts + other.counts
    means._computed = None
    found = {name: float(value) for name, value in means.compute().items()}
    assert found == {"loss": 4.5, "loss_text": 2.0, "loss_pointer": 2.5}
