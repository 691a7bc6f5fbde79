"""The least time of a step: the operations that it needs over the measured rate of matrix products."""

from __future__ import annotations

from examples import IGNORE, Batch

from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.flops import Flops, ModelFlops, Work


def micro_batches_per_step(model: PointAndCopyModel, batch: Batch) -> dict[str, Flops]:
    """FLOP of forward and backward pass on the flat batch by part, as `v1lit.training.flops` counts them."""
    flops = ModelFlops(model)
    work = Work(
        tokens=sum(batch.lengths),
        pairs=sum(length**2 for length in batch.lengths),
        positions=int((batch.flat_labels != IGNORE).sum()),
        examples=len(batch.lengths),
        vision=model.family.vision_work(model.backbone.config, batch.image_inputs),
    )
    return flops.parts(work)


def step_operations(model: PointAndCopyModel, batch: Batch) -> float:
    """All of them together."""
    return sum(part.total for part in micro_batches_per_step(model, batch).values())


def step_limit(model: PointAndCopyModel, batch: Batch, ceiling: float) -> float:
    """Seconds at `ceiling` FLOP/s."""
    return step_operations(model, batch) / ceiling
