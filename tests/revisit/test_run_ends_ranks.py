"""The end of a run on several ranks: its learned key and input, where weights or positions are divided."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.forked import needs_fork
from helpers.gloo_ranks import on_ranks
from helpers.one_step import IMAGES, compare_gradients, divided, on_two_ranks, whole

from v1lit.backbones.config import BackboneConfig
from v1lit.data.encode.batch import flatten
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.testing.models import inputs, training_examples, with_end

FAMILY = "qwen2_5_vl"


def step(rank: int, layout: tuple[int, ...], inner: str) -> None:
    """One step of a model over copies x shards x `inner`, and of one process that reads all batches."""
    torch.manual_seed(0)
    revisit = RevisitConfig("point_only", {"end": "pointer"})
    model = PointAndCopyModel.build(BackboneConfig(FAMILY), revisit=revisit).train()
    ours = divided(model, layout, inner).train()
    for name, parameter in ours.named_parameters():
        assert torch.equal(whole(parameter), model.get_parameter(name)), name
    readers = layout[0] * layout[1]
    batches = [
        flatten([with_end(example, FAMILY) for example in training_examples(FAMILY, images)])
        for images in IMAGES[:readers]
    ]
    normalizer = torch.tensor(20.0)
    expected = [model(**inputs(batch), labels=batch.labels, normalizer=normalizer) for batch in batches]
    (sum(out.loss for out in expected) / readers).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("look.", "pointer_head.end")):
            assert parameter.grad is not None
            assert parameter.grad.norm() > 0, name
    reader = rank // layout[2]
    out = ours(**inputs(batches[reader]), labels=batches[reader].labels, normalizer=normalizer)
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected[reader].loss, rtol=1e-5, atol=1e-6)
    assert torch.equal(out.targets, expected[reader].targets)
    assert torch.equal(out.terms.predictions, expected[reader].terms.predictions)
    compare_gradients(ours, model)


@needs_fork
@pytest.mark.timeout(120)
@on_two_ranks
def test_a_step_on_two_ranks_is_that_of_one_process(
    layout: tuple[int, ...], inner: str, tmp_path: Path
) -> None:
    on_ranks(2, tmp_path, step, layout, inner)
