"""What a forward pass of a `PointAndCopyModel` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from v1lit.backbones.cache_name import CACHE
from v1lit.pointer.joint_loss import PointerLoss
from v1lit.pointer.memory import PointerMemory


@dataclass
class PointAndCopyOutput(ModelOutput):
    """What `PointAndCopyModel.forward` returns."""

    loss: Tensor | None = None
    """`[]`: the mean over supervised positions; with labels only."""
    logits: Tensor | None = None
    """`[batch, tokens, V + pointers]`, float32, the lowest float for absent pointers; None with labels."""
    losses: dict[str, Tensor] | None = None
    """Parts of the loss; their sum is `loss`."""
    terms: PointerLoss | None = None
    """The losses as sums and counts, for exact averages over several batches; and predictions."""
    targets: Tensor | None = None
    """`[positions]`: labels of the supervised positions, in row-major order; `labels.END` where a run
    ends, here and in the predictions of `terms`."""
    verified: float | None = None
    """Largest relative error of the loss or a gradient, where it was compared with the reference."""
    cache: Cache | None = None
    """Keys and values of all tokens so far, whatever transformers calls the cache."""
    if CACHE == "past_key_values":
        past_key_values: Cache | None = None
        """The cache, where the `generate` of an earlier transformers looks for it."""
    pointer_memory: PointerMemory | None = None
    """What pointers of later tokens are scored against and copied from."""


class Watch(Protocol):
    """Is told of every step of a generation: what went on is known without computing it twice."""

    def reads(self, ids: Tensor) -> None:
        """The model is about to read the last of the ids so far, `[rows, tokens]`; first the whole prompt."""

    def finds(self, output: PointAndCopyOutput) -> None:
        """The model has read it: joint logits, cache and pointer memory, before anything steers."""
