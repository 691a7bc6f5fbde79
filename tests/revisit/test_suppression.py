"""Patches that were copied before are not pointed at again where the recipe asks for that."""

from __future__ import annotations

from itertools import chain, groupby, takewhile
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from v1lit.backbones.config import BackboneConfig
from v1lit.data.encode.batch import collate
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.revisit.suppression import Suppression
from v1lit.testing.models import generate, inputs, mixed, processor, training_batch

START, POINTERS = 6, 4


ROW = st.lists(st.integers(0, START + POINTERS - 1), min_size=5, max_size=5)


@given(st.lists(ROW, min_size=1, max_size=3))
@pytest.mark.parametrize("within_run", [True, False])
def test_what_may_follow_is_told_from_the_ids_alone(within_run: bool, rows: list[list[int]]) -> None:
    scores = torch.arange(float(len(rows) * (START + POINTERS))).view(len(rows), -1)
    found = Suppression(START, within_run)(torch.tensor(rows), scores)
    for row, ids in enumerate(rows):
        run = takewhile(START.__le__, reversed(ids))
        before = list(run) if within_run else ids
        for token in range(START + POINTERS):
            gone = token >= START and token in before
            assert found[row, token] == (-torch.inf if gone else scores[row, token])


def pointing(suppress: str) -> PointAndCopyModel:
    """A tiny model that points again and again."""
    torch.manual_seed(0)
    revisit = RevisitConfig(options={"suppress": suppress})
    model = PointAndCopyModel.build(BackboneConfig("qwen2_5_vl"), revisit=revisit)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "norm" not in name:
                parameter.mul_(4.0)
        model.pointer_head.query.weight.mul_(6.0)
    return model.eval()


def repeated(row: list[int], start: int, within_run: bool) -> bool:
    """Whether a pointer stands twice in a row of ids, or in one of its runs."""
    runs = [list(some) for points, some in groupby(row, key=start.__le__) if points]
    if not within_run:
        runs = [list(chain.from_iterable(runs))]
    return any(len(set(run)) < len(run) for run in runs)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.5, "num_return_sequences": 8},
        {"num_beams": 3, "num_return_sequences": 3},
    ],
    ids=["greedy", "sampled", "beams"],
)
def test_no_patch_is_copied_twice(options: dict[str, Any]) -> None:
    batch = collate(mixed("qwen2_5_vl", (1, 0, 2)), processor("qwen2_5_vl").pad_token_id, side="left")
    seen = {}
    for suppress in ("none", "region", "trace"):
        model = pointing(suppress)
        start = model.config.pointer_start
        rows = generate(model, batch, **options).tolist()
        assert any(token >= start for row in rows for token in row)
        seen[suppress] = [any(repeated(row, start, within) for row in rows) for within in (True, False)]
    assert seen["none"] == [True, True]
    assert not seen["region"][0]
    assert seen["trace"] == [False, False]


def test_training_is_as_without() -> None:
    batch = training_batch("qwen2_5_vl")
    plain, other = (pointing(suppress).train() for suppress in ("none", "trace"))
    losses = [model(**inputs(batch), labels=batch.labels).loss for model in (plain, other)]
    assert torch.equal(*losses)


def test_processors_of_the_caller_are_kept() -> None:
    batch = collate(mixed("qwen2_5_vl", (1,)), processor("qwen2_5_vl").pad_token_id, side="left")

    def only_seven(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor(7), 0.0)

    ids = generate(pointing("trace"), batch, logits_processor=[only_seven])
    assert set(ids.flatten().tolist()) == {7}
