"""Two ways to compute the same, compared; and the forward pass of the stock transformers class."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def assert_parity(what: str, ours: Tensor, theirs: Tensor, rounding: float = 1e-4) -> float:
    """The largest difference of two tensors, relative to the largest number in `theirs`.

    Raises AssertionError, saying `what`, for other shapes, for numbers that are not finite, and for a
    difference above `rounding`.
    """
    assert ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)} and {tuple(theirs.shape)} numbers"
    if not theirs.numel():
        return 0.0
    size = theirs.abs().max().item()
    difference = (ours - theirs).abs().max().item() / max(size, 1e-12)
    # Written so that NaN fails.
    assert difference <= rounding, f"{what} differ by {difference:.1e}, allowed {rounding:.0e}"
    return difference


def assert_refused(action: Callable[[], object], reason: str, what: str) -> None:
    """Raise AssertionError, saying `what`, unless an action raises a ValueError that names a reason."""
    try:
        action()
    except ValueError as error:
        if reason in str(error):
            return
        raise AssertionError(f"{what} is refused, but without naming {reason!r}: {error}") from error
    raise AssertionError(f"{what} is taken without a word")


def stock_logits(model: PreTrainedModel, input_ids: Tensor, image_token_id: int, **inputs: Any) -> Tensor:
    """Logits of the stock class called as its own processor would have it, `[batch, tokens, vocabulary]`."""
    if "mm_token_type_ids" in signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (input_ids == image_token_id).int()
    with torch.no_grad():
        logits: Tensor = model(input_ids=input_ids, **inputs).logits
    return logits
