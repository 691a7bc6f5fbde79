"""Generated ids as text, piece by piece, with nothing said too early."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.backbones.processor import Processor

UNFINISHED = "\ufffd"
"""How bytes of a character look that is not whole."""
LONGEST_CHARACTER = 8
"""Tokens that may wait for the rest of a character, before they are said as they are."""


class TextStream:
    """Turns tokens into text that can be sent at once.

    What it has said never changes: it holds back the bytes of an unfinished character, and what may be the
    beginning of a stop text.

    Args:
        processor: decodes the tokens.
        stop: texts before which the answer ends.
    """

    def __init__(self, processor: Processor, stop: Sequence[str] = ()) -> None:
        self.processor, self.stop = processor, stop
        self.stopped = False
        """Whether a stop text has been reached."""
        self._tokens: list[int] = []
        self._held = ""

    def add(self, token: int) -> str:
        """The text that can be said after one more token."""
        self._tokens.append(token)
        text = self.processor.decode(self._tokens)
        if text.endswith(UNFINISHED) and len(self._tokens) < LONGEST_CHARACTER:
            return ""
        self._tokens = []
        return self._say(text)

    def end(self) -> str:
        """What was held back."""
        text = self.processor.decode(self._tokens) if self._tokens else ""
        self._tokens = []
        said = self._say(text)
        if not self.stopped:
            said, self._held = said + self._held, ""
        return said

    def _say(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        begun = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` begins."""
    most = min(len(text), len(stop) - 1)
    return next((length for length in range(most, 0, -1) if text.endswith(stop[:length])), 0)
