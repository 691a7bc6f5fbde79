"""What this version of transformers calls the KV cache."""

from __future__ import annotations

from inspect import signature

from transformers import GenerationMixin

NAMES = ("cache", "past_key_values")
"""The name since transformers 5.24, and the one before, which transformers removes in 5.40."""

# Asked, never tried out: a decoder swallows the wrong name in `**kwargs` and continues without a cache.
_TAKEN = signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = next(name for name in NAMES if name in _TAKEN)
"""The name under which decoders take and return their cache, and `generate` looks for it."""
