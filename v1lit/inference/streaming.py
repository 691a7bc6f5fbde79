"""Answers while they are written: parts as they come, to a function or from an iterator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from v1lit.backbones.processor import Processor
from v1lit.grounding.trace import Trace, parse_trace
from v1lit.inference.prediction import Prediction
from v1lit.inference.reading import pointer_runs

UNFINISHED = "\ufffd"
"""What the beginning of a character is read as, until all its bytes are there."""


@dataclass(frozen=True)
class Part:
    """An answer as far as it is written."""

    row: int
    """Which of the answers that are written together, from 0."""
    text: str
    """All of it so far; pointers are written `<|copy_7|>`."""
    new: str
    """What has come since the part before."""
    pointers: tuple[tuple[int, ...], ...]
    """Image tokens that were pointed at so far: one tuple for every run of pointers."""
    prediction: Prediction | None = None
    """All about it, once it is whole: of the last part of a row."""
    ids: tuple[int, ...] = ()
    """Of `text`, with the token that ends an answer; `read_answer` makes a prediction of them."""

    @cached_property
    def trace(self) -> Trace:
        """The text so far with its calls taken apart; one that is not closed has the objects that are."""
        return parse_trace(self.text).trace


Listener = Callable[[Part], object]
"""Is told of parts as they come; an error in it ends the generation."""


class PartStreamer(BaseStreamer):
    """Has a listener told of every token of every row, as transformers hands them out.

    Args:
        listener: is told.
        processor: of the model.
        points: whether what looks like a pointer is one, and not put in.
    """

    def __init__(self, listener: Listener, processor: Processor, points: bool) -> None:
        self.listener, self.processor, self.points = listener, processor, points
        self._ids: dict[int, list[int]] = {}
        self._texts: dict[int, str] = {}
        self._rows: Sequence[int] = ()
        self._prompt = True

    def begin(self, rows: Sequence[int], said: Sequence[Sequence[int]]) -> None:
        """A generation begins, of these rows, which have said this much so far."""
        self._rows, self._prompt = rows, True
        for row, ids in zip(rows, said, strict=True):
            self._ids[row] = list(ids)

    def put(self, value: Tensor) -> None:
        """The next token of every row, `[rows]`; at first the prompt, which is passed over."""
        if self._prompt:
            self._prompt = False
            return
        for row, token in zip(self._rows, value.tolist(), strict=True):
            self._add(row, token)

    def end(self) -> None:
        """The last parts come with their predictions: `finish`."""

    def finish(self, predictions: Sequence[Prediction]) -> None:
        """All answers are whole."""
        for row, whole in enumerate(predictions):
            self._tell(row, whole.text, whole.pointers, whole)

    def _add(self, row: int, token: int) -> None:
        ids = self._ids[row]
        stop = self.processor.stop_token_id
        if ids[-1:] == [stop] or token == self.processor.pad_token_id != stop:
            return
        ids.append(token)
        start = self.processor.pointer_start
        if token != stop and (self.points or token < start):
            own = ids if self.points else [one for one in ids if one < start]
            text = self.processor.decode(own)
            if not text.endswith(UNFINISHED):
                self._tell(row, text, pointer_runs(own, start) if self.points else ())

    def _tell(
        self, row: int, text: str, runs: tuple[tuple[int, ...], ...], whole: Prediction | None = None
    ) -> None:
        before = self._texts.get(row, "")
        new = text.removeprefix(before)
        self._texts[row] = text
        self.listener(Part(row, text, new, runs, whole, tuple(self._ids[row])))


class _LeftError(Exception):
    """Nobody listens any more."""


def iterate(work: Callable[[Listener], object]) -> Iterator[Part]:
    """The parts that `work` tells its listener, which it does in a thread of its own.

    An error in the work is raised here. Who leaves the loop early ends the work at its next token.
    """
    parts: SimpleQueue[Part | BaseException | None] = SimpleQueue()
    left = threading.Event()

    def listen(part: Part) -> None:
        if left.is_set():
            raise _LeftError
        parts.put(part)

    def run() -> None:
        try:
            work(listen)
        except BaseException as error:
            parts.put(error)
        else:
            parts.put(None)

    thread = threading.Thread(target=run, name="v1lit-answer", daemon=True)
    thread.start()
    try:
        while (part := parts.get()) is not None:
            if isinstance(part, BaseException):
                raise part
            yield part
    finally:
        left.set()
        thread.join()
