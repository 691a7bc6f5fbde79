"""How a family writes a conversation: the marks around messages and images."""

from __future__ import annotations

from dataclasses import dataclass

from v1lit.errors import explain_unknown


@dataclass(frozen=True)
class ChatFormat:
    """How a family writes a conversation: each message stands between its role's two marks."""

    system: tuple[str, str]
    """Marks before and after a system message."""
    user: tuple[str, str]
    """Marks before and after a user message."""
    assistant: tuple[str, str]
    """Marks before and after an assistant message; generation starts after the first."""
    image: tuple[str, str]
    """Marks before and after an image's tokens."""
    image_token: str
    """The token that stands once for every image token."""
    stop: str
    """The token that ends an answer, the first of the assistant's second mark."""
    default_system: str | None = None
    """System message of conversations that have none of their own; None for no message."""
    start: str = ""
    """Text at the very start of a conversation."""
    tokens: tuple[str, ...] = ()
    """Further marks that must be single tokens, as the model has learned them."""
    system_in_user: bool = False
    """Whether a system message stands at the start of the first user message, inside of that one's marks."""

    joins_lines: bool = False
    """Whether the tokenizer has tokens for several line breaks, which reach over the edges of marks."""

    @property
    def single(self) -> tuple[str, ...]:
        """All marks that must be single tokens."""
        return (self.image_token, self.stop, *self.tokens)

    def marks(self, role: str) -> tuple[str, str]:
        """Text before and after a message of this role: "system", "user" or "assistant"."""
        if role not in ("system", "user", "assistant"):
            raise ValueError(explain_unknown("role", role, ("system", "user", "assistant")))
        marks: tuple[str, str] = getattr(self, role)
        return marks
