"""What the page takes from those who ask, and what it does not."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import StoppingCriteria

from v1lit.errors import check_least
from v1lit.serving.limits import ServerLimits


@dataclass(frozen=True)
class DemoLimits:
    """Bounds of one question."""

    upload_mb: int = 20
    """Of an image file, in 2^20 bytes; counted as it arrives."""
    pixels: int = ServerLimits.pixels
    """Pixels of an image, looked up in its header before it is decoded."""
    characters: int = 4000
    """Of a question."""
    new_tokens: int = 1024
    """Tokens of an answer."""
    seconds: float = ServerLimits.seconds
    """Time of an answer; what is written by then is shown."""
    waiting: int = 16
    """Questions that wait, while one is answered."""

    GROUP: ClassVar[str] = "demo"

    def __post_init__(self) -> None:
        check_least(self, 1, "upload_mb", "pixels", "characters", "new_tokens", "seconds", "waiting")


class Deadline(StoppingCriteria):
    """Ends a generation when its time is over or somebody has seen enough.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._stopped = False
        self.reason: str | None = None
        """Why an answer was ended, if it was."""

    def stop(self) -> None:
        """End it at the next token."""
        self._stopped = True

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """`[rows]`: whether each row is done."""
        late = time.monotonic() >= self._end
        if self._stopped or late:
            self.reason = "stopped" if self._stopped else f"ended after {self.seconds:g} seconds, the limit"
        return torch.full((len(input_ids),), self.reason is not None, device=input_ids.device)
