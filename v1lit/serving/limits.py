"""What a server takes from its clients, and what it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from v1lit.errors import check_least


@dataclass(frozen=True)
class ServerLimits:
    """Bounds of one request."""

    body_bytes: int = 32 * 2**20
    """Of a request's body; counted as it arrives, whatever its header says."""
    images: int = 16
    """Images of a conversation."""
    pixels: int = 40_000_000
    """Pixels of an image, looked up in its header before it is decoded."""
    new_tokens: int = 4096
    """Tokens of an answer; the default of `max_tokens` too."""
    seconds: float = 300.0
    """Time of an answer, waiting included."""
    body_seconds: float = 60.0
    """Time in which the body of a request has to come."""
    reader_seconds: float = 60.0
    """Time in which a client has to take a piece of a stream; after that nothing more is sent to it."""
    preparing: int = 4
    """Requests whose images are decoded at once."""
    remote_images: bool = False
    """Whether images may be named by http(s) addresses; those of private networks never may."""
    choices: int = 8
    """Answers to one request (`n`) at most."""

    GROUP: ClassVar[str] = "serve"

    def __post_init__(self) -> None:
        check_least(self, 1, "body_bytes", "images", "pixels", "new_tokens", "preparing", "choices")
