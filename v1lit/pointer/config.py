"""Options of the pointer plug-in: how a model points, copies and learns to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from v1lit.errors import OptionError, check_choices, check_fields, check_least


@dataclass(frozen=True)
class PointerConfig:
    """Every option of the mechanism; the defaults are those of the published v1 but for the top-k z-loss.

    Source: jun297/v1, v1/configuration_v1.py, `V1Config.__init__`.
    """

    tie_heads: bool = False
    """Use one projection for queries and keys."""
    width: int | None = None
    """Width of the projections; the hidden size when not given. The scale stays 1/sqrt(hidden size)."""
    key_source: Literal["hidden", "embedding"] = "hidden"
    """Keys come from the last hidden states of the image tokens, or from their input embeddings."""
    normalize: bool = False
    """L2-normalise states before the projections."""
    gate: bool = False
    """Learn g = sigmoid(w . h): vocabulary logits times 1 - g, pointer logits times g."""
    identity_init: bool = False
    """Start both projections as the identity times 1/sqrt(hidden size), as the published run did.

    Source: jun297/v1, train.py, `model.after_loading()`.
    """
    loss: Literal["joint", "separate"] = "joint"
    """One softmax over vocabulary and pointers, or two: text over the vocabulary, pointers over pointers."""
    z_weight: float = 1e-5
    """Weight of mean(logsumexp^2) over the supervised positions."""
    z_top_k: int | None = None
    """Take the z-loss over the k largest logits only, as the published run did (40). Joint loss only."""
    label_smoothing: float = 0.0
    """Share of the probability that is spread evenly over all allowed classes."""
    first_pointer_weight: float = 1.0
    """Weight in the loss of a region's first pointer, which decides where to look; other positions have 1."""
    loss_implementation: Literal["auto", "reference", "chunked", "triton"] = "auto"
    """How the loss is computed, with the same results; `auto` takes the fastest that runs on the device."""
    loss_chunk: int | None = None
    """Supervised positions per chunk of the loss, whose memory is chunk x vocabulary; null chooses one."""

    GROUP: ClassVar[str] = "pointer"

    def __post_init__(self) -> None:
        check_choices(self)
        check_least(self, 1, "width", "z_top_k", "loss_chunk")
        check_fields(self, ["label_smoothing"], lambda share: 0 <= share < 1, "it must lie in [0, 1)")
        check_fields(self, ["z_weight"], lambda weight: weight >= 0, "it must not be negative")
        check_fields(self, ["first_pointer_weight"], lambda weight: weight > 0, "it must be positive")
        if self.loss == "separate" and self.z_weight > 0:
            why = "it has no z-loss: set model.pointer.z_weight to 0"
            raise OptionError("loss", self.loss, why, self.GROUP)
