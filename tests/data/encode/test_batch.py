"""Flat and padded batches of the same examples."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.plugins import HalfPrecision

from v1lit.backbones.segments import Segments
from v1lit.data.encode.batch import Batch, LabelCounts, collate, flatten
from v1lit.data.encode.encoding import Encoded
from v1lit.grounding.patch_map import PatchMap
from v1lit.inference.reading import pointer_runs
from v1lit.labels import IGNORE, first_pointers
from v1lit.pointer.layout import Targets, TokenLayout
from v1lit.training.logged import POINTING
from v1lit.training.metrics import PointingMetrics

START = 100


def example(name: str, labels: list[int], images: int = 0) -> Encoded:
    pixels = torch.arange(float(images)).repeat_interleave(2)[:, None]
    ids = torch.arange(1, len(labels) + 1)
    maps = tuple(PatchMap.grid((8, 8), 1, 2) for _ in range(images))
    inputs = {"pixel_values": pixels} if images else {}
    return Encoded(name, ids, torch.tensor(labels), inputs, maps, (), unseen=("a",), cut=2)


EXAMPLES = [
    example("a", [IGNORE, 4, START, START + 1, 7, START + 1], images=1),
    example("b", [5, START, 6]),
    example("c", [START, START + 1, IGNORE, START, 3], images=2),
]


def test_a_flat_batch_is_its_examples_one_behind_another() -> None:
    batch = flatten(EXAMPLES, START)
    assert batch.segment_lengths == (6, 3, 5)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 1, 2, 3, 1, 2, 3, 4, 5]]
    assert torch.equal(batch.labels[0], torch.cat([example.labels for example in EXAMPLES]))
    assert torch.equal(batch.attention_mask, torch.ones(1, 14, dtype=torch.long))
    assert batch.image_inputs["pixel_values"].flatten().tolist() == [0, 0, 0, 0, 1, 1]
    assert (len(batch), batch.ids, batch.images) == (3, ("a", "b", "c"), 3)
    assert (batch.tokens, batch.real_tokens) == (14, 14)
    assert (batch.unseen, batch.cut) == (3, 6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_says_the_same_of_the_same_examples(side: str) -> None:
    flat, padded = flatten(EXAMPLES, START), collate(EXAMPLES, 0, side=side, pointer_start=START)  # type: ignore[arg-type]
    assert padded.segment_lengths is None
    assert padded.input_ids.shape == (3, 6)
    for name in ("input_ids", "labels"):
        assert torch.equal(getattr(padded, name)[padded.attention_mask == 1], getattr(flat, name)[0])
    assert (padded.labels[padded.attention_mask == 0] == IGNORE).all()
    assert (padded.input_ids[padded.attention_mask == 0] == 0).all()
    padding = padded.attention_mask == 0
    assert bool(padding[1, 0 if side == "left" else -1])
    assert (padded.tokens, padded.real_tokens, padded.images) == (18, 14, 3)
    assert padded.counts == flat.counts


def test_nothing_predicts_the_first_token_of_an_example() -> None:
    # a: 4 | pointer, pointer | 7 | pointer; b: pointer | 6; c: a pointer behind the uncounted one, ... | 3
    assert LabelCounts.of(EXAMPLES[:1], START) == (2, 3, 2)
    assert LabelCounts.of(EXAMPLES[1:2], START) == (1, 1, 1)
    assert LabelCounts.of(EXAMPLES[2:], START) == (1, 2, 1)
    assert flatten(EXAMPLES, START).counts == LabelCounts(text=4, pointers=6, runs=4)
    assert flatten(EXAMPLES).counts is None


LABELS = st.lists(st.sampled_from([IGNORE, 1, 2, START, START + 1]), min_size=1, max_size=12)


@given(rows=st.lists(LABELS, min_size=1, max_size=4))
def test_counts_are_those_of_a_plain_loop(rows: list[list[int]]) -> None:
    text = pointers = runs = 0
    for labels in rows:
        for before, label in pairwise(labels):
            text += label != IGNORE and label < START
            pointers += label >= START
            runs += label >= START and before < START
    examples = [example(str(number), labels) for number, labels in enumerate(rows)]
    assert LabelCounts.of(examples, START) == (text, pointers, runs)


@given(rows=st.lists(LABELS, min_size=1, max_size=4))
def test_counts_loss_metrics_and_prediction_agree_where_a_run_of_pointers_begins(
    rows: list[list[int]],
) -> None:
    examples = [example(str(number), labels) for number, labels in enumerate(rows)]
    flat, padded = flatten(examples, START), collate(examples, 0)
    layouts = [
        TokenLayout.of(flat.input_ids, 0, START, Segments(flat.segment_lengths or ())),
        TokenLayout.of(padded.input_ids, 0, START),
    ]
    for batch, layout in zip((flat, padded), layouts, strict=True):
        first = Targets.of(batch.labels, layout, START).first
        assert int(first.sum()) == LabelCounts.of(examples, START).runs
    for ids in (torch.tensor(labels) for labels in rows):
        metrics = PointingMetrics(START)
        metrics.update(ids, ids)
        runs = pointer_runs(ids.tolist(), START)
        counted = int(metrics.counts[0, POINTING.index("region_iou")])
        assert counted == int(first_pointers(ids, START).sum()) == len(runs)


def with_sums(sums: list[int], parts: int) -> Batch:
    return replace(flatten(EXAMPLES, START), step_sums=torch.tensor(sums), micro_batches_per_step=parts)


def test_moving_takes_the_step_counts_along() -> None:
    assert flatten(EXAMPLES, START).step_counts is None
    moved = with_sums([6, 3, 1], 2).to("meta")
    assert moved.step_counts is not None
    tensors = (
        moved.input_ids,
        moved.labels,
        moved.attention_mask,
        moved.step_counts,
        *moved.image_inputs.values(),
    )
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert with_sums([6, 3, 1], 2).to("cpu").step_counts.tolist() == [3.0, 1.5, 0.5]  # type: ignore[union-attr]


@pytest.mark.gpu  # only memory for a GPU is pinned
def test_pinned_memory_holds_every_tensor() -> None:
    batch = with_sums([6, 3, 1], 2).pin_memory()
    assert batch.step_sums is not None
    tensors = (
        batch.input_ids,
        batch.labels,
        batch.attention_mask,
        batch.step_sums,
        *batch.image_inputs.values(),
    )
    assert all(tensor.is_pinned() for tensor in tensors)


def test_half_precision_does_not_round_the_step_counts() -> None:
    """4,097 is no bfloat16."""
    converted = HalfPrecision("bf16-true").convert_input(with_sums([4097, 257, 1], 1))
    assert converted.image_inputs["pixel_values"].dtype == torch.bfloat16
    assert converted.step_counts.tolist() == [4097.0, 257.0, 1.0]
    assert converted.counts == LabelCounts(4, 6, 4)


def test_no_examples_make_no_batch() -> None:
    for make in (flatten, lambda examples: collate(examples, 0)):
        with pytest.raises(ValueError, match="at least one example"):
            make([])
