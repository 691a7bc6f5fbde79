"""A rank computes its batches of a step in order of their work, so that ranks wait least for each other."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import torch
from hypothesis import given
from hypothesis import strategies as st

from v1lit.data.encode.batch import Batch, LabelCounts, blank_batch
from v1lit.data.loading.micro_batch import MicroBatch
from v1lit.data.loading.step import StepBatches, heaviest_first
from v1lit.data.loading.step_loader import StepLoader
from v1lit.data.sampling.remaining import MicroBatchState
from v1lit.data.sampling.rows import MicroBatchPlan

WORK = st.integers(1, 5).flatmap(
    lambda batches: st.lists(
        st.lists(st.integers(0, 100), min_size=batches, max_size=batches), min_size=1, max_size=6
    )
)
"""Of every rank the work of its batches."""


def time_of(work: list[list[int]]) -> int:
    """Of a step whose ranks meet in every batch: the largest over ranks of each."""
    return sum(map(max, zip(*work, strict=True)))


def in_order(own: list[int]) -> list[int]:
    return [own[place] for place in heaviest_first(own)]


@given(work=WORK)
def test_every_batch_comes_once_and_no_step_takes_longer_than_in_the_order_of_the_plan(
    work: list[list[int]],
) -> None:
    for own in work:
        order = heaviest_first(own)
        assert sorted(order) == list(range(len(own)))
        assert order == heaviest_first(list(own))
    assert time_of([in_order(own) for own in work]) <= time_of(work)


@given(first=st.lists(st.integers(0, 9), min_size=4, max_size=4), other=st.permutations([0, 3, 5, 9]))
def test_no_order_of_the_batches_is_better(first: list[int], other: list[int]) -> None:
    best = min(time_of([list(own), other]) for own in permutations(first))
    assert time_of([in_order(first), in_order(other)]) == best


def batch(tokens: int, image_tokens: int) -> Batch:
    zeros = torch.zeros(1, tokens, dtype=torch.long)
    counts = LabelCounts(0, 0, 0)
    shape = {"images": 1, "image_tokens": image_tokens, "real_tokens": tokens, "counts": counts}
    return Batch(("a",), zeros, zeros, zeros, {}, (tokens,), **shape)


def test_the_batches_of_a_step_come_by_work_and_say_which_one_of_the_plan_they_are() -> None:
    """Image tokens count twice; a blank batch comes last, and the last one ends the step."""
    batches = [batch(10, 0), batch(9, 5), blank_batch(0, flat=True), batch(10, 2)]
    plans = [MicroBatchPlan((), MicroBatchState(read)) for read in range(4)]
    made = [MicroBatch(one, (), row=plan) for one, plan in zip(batches, plans, strict=True)]
    step = StepBatches([replace(one) for one in made], batches, 3, 0)
    reads = [one.read for one in StepLoader._batches(step, 7)]
    assert [read.micro_batch for read in reads if read] == [1, 3, 0, 2]
    assert [read.last for read in reads if read] == [False, False, False, True]
    assert [read.after for read in reads if read] == [MicroBatchState(place) for place in (1, 3, 0, 2)]
