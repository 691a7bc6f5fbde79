"""What checks compare with: the stock transformers class, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


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
    for name in {"mm_token_type_ids", "token_type_ids"} & set(signature(model.forward).parameters):
        inputs[name] = (input_ids == image_token_id).int()
    with torch.no_grad():
        logits: Tensor = model(input_ids=input_ids, **inputs).logits
    return logits
