"""The benchmark of balance: rows that weigh images keep ranks waiting less than rows that do not."""

from __future__ import annotations

import random
from itertools import product

import balance
import numpy as np

from v1lit.data.lengths.length import Length


def test_rows_are_compared_with_those_that_weigh_no_images() -> None:
    rng = random.Random(0)
    images = [rng.choice([0, 60, 500, 2000]) for _ in range(300)]
    lengths = [Length(image + rng.randint(80, 600), image, 1) for image in images]
    rows = {row.title: row.value for row in balance.rows_of("some", lengths, ranks=4, steps=3)}
    assert len(rows) == 12
    packed = "Balance, some, 4 ranks, packed to 8,192"
    padded = "Balance, some, 4 ranks, 4 padded, of similar length"
    for what, (plan, before) in product(
        ("image tokens", "work"), ((packed, " by tokens alone"), (padded, ", every rank in its own order"))
    ):
        after, was = rows[f"{plan}: {what}, largest / mean"], rows[f"{plan}{before}: {what}, largest / mean"]
        assert after is not None
        assert was is not None
        assert 1 <= after < was


def test_the_largest_of_each_row_counts_and_order_may_lower_it() -> None:
    """Two ranks, two rows: (1, 3) meet, then (3, 1)."""
    steps = np.array([[[[1, 0], [3, 0]], [[3, 0], [1, 0]]]])
    assert balance.largest_over_mean(steps[..., 0]) == 1.5
    assert balance.largest_over_mean(balance.by_work(steps)[..., 0]) == 1.0
