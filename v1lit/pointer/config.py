"""Options of the pointer plug-in: how a model points, copies and learns to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PointerConfig:
    """Every option of the mechanism; the defaults are the published v1 settings without its top-k z-loss."""

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
    """Start both projections as the identity times 1/sqrt(hidden size)."""
    loss: Literal["joint", "separate"] = "joint"
    """One softmax over vocabulary and pointers, or two: text over the vocabulary, pointers over pointers."""
    z_weight: float = 1e-5
    """Weight of mean(logsumexp^2) over the supervised positions."""
    z_top_k: int | None = None
    """Take the z-loss over the k largest logits only, as the published run did (40). Joint loss only."""
    label_smoothing: float = 0.0
    """Share of the probability spread evenly over all allowed classes."""
    first_pointer_weight: float = 1.0
    """Weight in the loss of a region's first pointer, which decides where to look; other positions have 1."""
    loss_implementation: Literal["auto", "reference", "chunked", "triton"] = "auto"
    """How the loss is computed; all give the same. `auto` takes the fastest that runs on the device."""
    loss_chunk: int | None = None
    """Supervised positions per chunk of the loss: memory is chunk x vocabulary. Null for a good number."""

    def __post_init__(self) -> None:
        if self.width is not None and self.width < 1:
            raise ValueError(
                f"pointer.width is {self.width}; give a positive width, or null for the hidden size"
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"pointer.label_smoothing is {self.label_smoothing}; it must lie in [0, 1)")
        if self.z_weight < 0.0:
            raise ValueError(f"pointer.z_weight is {self.z_weight}; it must not be negative")
        if self.z_top_k is not None and self.z_top_k < 1:
            raise ValueError(
                f"pointer.z_top_k is {self.z_top_k}; give a positive count, or null for all logits"
            )
        if self.first_pointer_weight <= 0.0:
            raise ValueError(
                f"pointer.first_pointer_weight is {self.first_pointer_weight}; it must be positive"
            )
        if self.loss_chunk is not None and self.loss_chunk < 1:
            raise ValueError(
                f"pointer.loss_chunk is {self.loss_chunk}; give a positive number, or null for a good one"
            )
        if self.loss == "separate" and self.z_weight > 0.0:
            raise ValueError("pointer.loss is 'separate', which has no z-loss; set pointer.z_weight to 0")
        for name, value, allowed in (
            ("key_source", self.key_source, ("hidden", "embedding")),
            ("loss", self.loss, ("joint", "separate")),
            ("loss_implementation", self.loss_implementation, ("auto", "reference", "chunked", "triton")),
        ):
            if value not in allowed:
                raise ValueError(f"pointer.{name} is {value!r}; allowed: {', '.join(allowed)}")
