"""The loss of regions on several ranks: they divide the weights, or share the positions of one batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.forked import needs_fork
from helpers.gloo_ranks import on_ranks
from helpers.one_step import compare_gradients, divided, on_two_ranks

from v1lit.backbones.config import BackboneConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.testing.models import inputs, packed_batch

FAMILY = "qwen2_5_vl"
IMAGES = ((1, 2, 1), (0, 1))
"""Images of the examples that either reader of data has."""


def step(rank: int, layout: tuple[int, ...], inner: str) -> None:
    """One step of a model over copies x shards x `inner`, and of one process that reads all batches."""
    torch.manual_seed(0)
    revisit = RevisitConfig("multi_patch", {"weight": 3.0})
    model = PointAndCopyModel.build(BackboneConfig(FAMILY), revisit=revisit).train()
    ours = divided(model, layout, inner).train()
    readers = layout[0] * layout[1]
    batches = [packed_batch(FAMILY, images) for images in IMAGES[:readers]]
    whole = [model(**inputs(batch), labels=batch.labels) for batch in batches]
    sums = [torch.stack([out.terms.counts[name] for name in ("joint", "regions")]) for out in whole]
    normalizer = torch.stack(sums).sum(0) / readers
    model.zero_grad()
    expected = [model(**inputs(batch), labels=batch.labels, normalizer=normalizer) for batch in batches]
    (sum(out.loss for out in expected) / readers).backward()
    reader = rank // layout[2]
    batch = batches[reader]
    with torch.no_grad():
        alone = ours(**inputs(batch), labels=batch.labels)
    torch.testing.assert_close(alone.loss, whole[reader].loss.detach(), rtol=1e-5, atol=1e-6)
    out = ours(**inputs(batch), labels=batch.labels, normalizer=normalizer)
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected[reader].loss, rtol=1e-5, atol=1e-6)
    for name, value in expected[reader].losses.items():
        torch.testing.assert_close(out.losses[name], value, rtol=1e-5, atol=1e-6)
    compare_gradients(ours, model)


@needs_fork
@pytest.mark.timeout(120)
@on_two_ranks
def test_a_step_on_two_ranks_is_that_of_one_process(
    layout: tuple[int, ...], inner: str, tmp_path: Path
) -> None:
    on_ranks(2, tmp_path, step, layout, inner)
