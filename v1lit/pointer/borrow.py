"""A model in training may be asked something, and its training continues as if nobody had asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Put every part of `model` in evaluation mode; afterwards each has the mode that it had.

    Where a part was in training mode, torch's random state is put back as well, or dropout would differ from
    that of a run in which nothing was asked. Both hold after an error too.
    """
    training = [part for part in model.modules() if part.training]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    model.eval()
    try:
        with torch.random.fork_rng(devices, enabled=bool(training)):
            yield
    finally:
        for part in training:  # not train(), which sets all parts alike
            part.training = True
