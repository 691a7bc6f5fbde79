"""One answer on its way: tokens from the engine's thread, text for whoever asked, all of it at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import torch
from transformers import LogitsProcessor

from v1lit.data.encode.encoding import Encoded
from v1lit.inference.prediction import Prediction
from v1lit.inference.reading import read_answer
from v1lit.inference.recording import Record
from v1lit.serving.asking import Ask
from v1lit.serving.engine import Engine, Reason, Request
from v1lit.serving.text import TextStream


class AnswerError(RuntimeError):
    """The model could not finish an answer."""


def _tell(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Any], *heard: Any) -> None:
    """In the engine's thread; raises RuntimeError once the loop is closed.

    It knows no more of an answer than its queue: in a circle with its images, an answer that is over would be
    kept until Python looks for circles, which takes thousands of requests.
    """
    loop.call_soon_threadsafe(queue.put_nowait, heard)


class Answering:
    """Asks an engine, and gives the text as it comes.

    Args:
        engine: that answers.
        ask: what was asked.
        prompt: the encoded conversation.
        rules: on what is generated.
        seconds: time for the answer.
        number: of several answers to one request; each has a seed of its own.
    """

    def __init__(
        self,
        engine: Engine,
        ask: Ask,
        prompt: Encoded,
        rules: Sequence[LogitsProcessor],
        seconds: float,
        number: int = 0,
    ) -> None:
        self.engine, self.prompt = engine, prompt
        self.reason: Reason | None = None
        """Why it has ended."""
        self.ids: list[int] = []
        self._text = TextStream(engine.processor, ask.stop)
        self._heard: asyncio.Queue[tuple[int | None, Reason | None, Exception | None]] = asyncio.Queue()
        told = partial(_tell, asyncio.get_running_loop(), self._heard)
        self.request = Request(prompt, ask.max_tokens, told, ask.sampling.at(number), rules, seconds)

    async def pieces(self) -> AsyncIterator[str]:
        """The text, piece by piece. Whoever stops listening frees the row; raises AnswerError."""
        self.engine.submit(self.request)
        try:
            while self.reason is None:
                token, reason, error = await self._heard.get()
                if token is not None:
                    self.ids.append(token)
                    piece = self._text.add(token)
                else:
                    self.reason, piece = reason, self._text.end()
                if self._text.stopped:
                    self.reason = "stop"
                if piece:
                    yield piece
                if error is not None:
                    raise AnswerError(f"{type(error).__name__}: {error}") from error
        finally:
            self.request.cancelled = True

    def prediction(self) -> Prediction:
        """All of it, with where the model looked and how sure it was."""
        noted = self.request.noted[: len(self.ids)]
        record = None
        if noted:
            pointers, totals, chosen = (torch.stack(part).cpu() for part in zip(*noted, strict=True))
            patches = sum(map(len, self.prompt.patch_maps))
            record = Record(pointers, totals, chosen - totals, patches)
        return read_answer(
            self.ids,
            record,
            self.prompt.patch_maps,
            len(self.prompt.input_ids),
            self.engine.processor,
            self.engine.model.strategy,
        )
