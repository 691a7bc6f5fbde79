"""What Lightning and transformers say during a run that is of no use to the person who reads the screen."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

REMARKS = (
    r"(\[rank: \d+\] )?Seed set to ",
    r"GPU available: ",
    r"TPU available: ",
    r"💡 Tip: For seamless cloud ",
    r"Loading `train_dataloader` to estimate number of stepping batches",
    r"Restored all states from the checkpoint at ",  # said before, when it began
    r"\s*Detected KeyboardInterrupt, attempting graceful shutdown",  # the command line says that it stopped
    r"Failed to load CPU gemm_4bit_forward ",  # of bitsandbytes, for a kernel that no run uses
    r"`Trainer\.fit` stopped: ",  # the report says how many steps were trained
)
"""Beginnings of log lines that are left out."""
OF_GPUS = (
    # Of linear attention; on a CPU there is nothing else to install.
    r"`\w+` is falling back to its reference PyTorch implementation",
)
"""Beginnings of log lines that are left out where there is no GPU."""
WARNINGS = (
    # Between Lightning and PyTorch; nothing to be done here or by the person who reads it.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Lengths of the data module are exact for any number of workers, and readers divide the examples.
    r"Your `IterableDataset` has `__len__` defined\.",
    # Between DeepSpeed and PyTorch.
    r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is deprecated",
    # No validation split: stated in the docs, and at the end of the run.
    r"Total length of `(list|CombinedLoader)` across ranks is zero\.",
    # Resuming in the same folder is what `run.resume` with the same name asks for.
    r"Checkpoint directory .* exists and is not empty\.",
    # The recipe sets data.num_workers; on few cores, and for drawn scenes, none is the fastest.
    r"The '(train|val)_dataloader' does not have many workers which may be a bottleneck\.",
    # Steps are counted through all epochs, so there are logs all the same.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # The data module resumes with the very next batch; Lightning only looks at the loader.
    r"You're resuming from a checkpoint that ended before the epoch ended and your dataloader is not resum",
)
"""Beginnings of warnings that are left out."""
LOGGERS = (
    "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "transformers.integrations.hub_kernels",
    "bitsandbytes.backends.cpu.ops",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out exactly `REMARKS`, `WARNINGS` and, without a GPU, `OF_GPUS`; all else is shown."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    with warnings.catch_warnings():
        for pattern in WARNINGS:
            warnings.filterwarnings("ignore", message=pattern)
        for logger in loggers:
            logger.addFilter(is_wanted)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(is_wanted)


@contextmanager
def no_weights_bar() -> Iterator[None]:
    """Leave out transformers' progress bars, such as that over the files of a saved model."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def is_wanted(record: logging.LogRecord) -> bool:
    """Whether a record says something to the person who reads the screen."""
    import torch

    left_out = REMARKS if torch.cuda.is_available() else (*REMARKS, *OF_GPUS)
    return re.match("|".join(left_out), record.getMessage()) is None
