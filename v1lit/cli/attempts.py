"""What a run under a launcher says of each of its starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from v1lit.cli.failures import LOST_OTHERS, explain
from v1lit.training import attempts
from v1lit.training.checkpoints import checkpoint_to_resume
from v1lit.training.lightning_internals import steps_of
from v1lit.training.saved_state import read_checkpoint
from v1lit.training.stopping import RunStopped


@contextmanager
def noted(folder: Path, resume: str | None) -> Iterator[None]:
    """Note in the run's folder where a start begins, and how it ends, if a launcher made it.

    Raises NoProgressError on the first rank, and ends the others, if earlier ones failed from the same step.
    """
    if not os.environ.get(attempts.LAUNCH):
        yield
        return
    rank: int = getattr(rank_zero_only, "rank", 0)
    path = checkpoint_to_resume(resume, folder)
    step = 0 if path is None else steps_of(read_checkpoint(path))
    try:
        attempts.begin(folder, step, rank)
    except attempts.NoProgressError as error:
        if rank == 0:
            raise
        sys.exit(error.exit_code)  # once is enough
    try:
        yield
    except RunStopped as stop:
        _end(folder, rank, str(stop))
        raise
    except Exception as error:
        told = explain(error)
        reason = told.message if told is not None else f"{type(error).__name__}: {error}"
        attempts.note_failure(folder, rank, " ".join(reason.split()), reason.startswith(LOST_OTHERS))
        raise
    _end(folder, rank, "done")


def _end(folder: Path, rank: int, how: str) -> None:
    if rank == 0:
        attempts.end(folder, how)
