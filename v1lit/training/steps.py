"""How long a run is."""

from __future__ import annotations

from lightning import Trainer


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole run; None where nobody knows, as with epochs of packed rows."""
    steps = trainer.estimated_stepping_batches
    # -1 from Lightning: an epoch's batches cannot be counted, and max_steps is not set.
    return int(steps) if 0 <= steps < float("inf") else None
