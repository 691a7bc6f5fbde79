"""The engine: a thread that runs one batch, lets requests in as there is room, and hands out their tokens."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor
from transformers import LogitsProcessor

from v1lit.backbones.processor import Processor
from v1lit.data.encode.encoding import Encoded
from v1lit.errors import check_least
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.crop import Crop
from v1lit.serving.choice import Choice, Sampling
from v1lit.serving.running_batch import Row, RunningBatch

Reason = Literal["stop", "length", "cancelled", "timeout", "error"]
"""Why a request has ended."""


Noted = Sequence[tuple[Tensor, Tensor, Tensor]]


class EngineFullError(RuntimeError):
    """As many requests wait as may."""


@dataclass(frozen=True)
class EngineLimits:
    """How much an engine takes on."""

    rows: int = 32
    """Requests that are answered at once."""
    waiting: int = 256
    """Requests that wait for a row; a further one is refused."""
    tokens: int = 65536
    """Tokens of all rows, prompts and answers in full, that may be held at once."""

    GROUP: ClassVar[str] = "serve"

    def __post_init__(self) -> None:
        check_least(self, 1, "rows", "tokens")
        check_least(self, 0, "waiting")


@dataclass(eq=False)
class Request:
    """One prompt, how its answer is chosen, and who is told of it."""

    prompt: Encoded
    max_new_tokens: int
    told: Callable[[int | None, Reason | None, Exception | None], None]
    """Called in the engine's thread with every token; at the end with the reason, and the error if any."""
    sampling: Sampling = field(default_factory=Sampling)
    rules: Sequence[LogitsProcessor] = ()
    """What changes its logits before a token is chosen; see `v1lit.steering`."""
    seconds: float | None = None
    """Time for it, waiting included, after which it ends wherever it is."""
    noted: Noted = ()
    """What the model found at every token, as `Row.noted`; of a row that has begun."""
    cancelled: bool = False
    """Set by whoever asked and no longer waits for the answer."""
    begun: float = field(default_factory=time.monotonic)
    """`time.monotonic()` when it was made."""

    @property
    def tokens(self) -> int:
        """Tokens of prompt and answer, at most."""
        return len(self.prompt.input_ids) + self.max_new_tokens


@dataclass
class Counts:
    """What an engine has done since it was started."""

    ended: dict[str, int] = field(default_factory=dict)
    """Requests by the reason of their end."""
    refused: int = 0
    """Requests for which there was no room to wait."""
    tokens: int = 0
    """Tokens generated."""
    prompt_tokens: int = 0
    """Tokens prefilled, image tokens included."""
    steps: int = 0
    """Decoding steps of the batch."""
    step_seconds: float = 0.0
    """Time of these."""
    first_token_seconds: float = 0.0
    """Time from a request to its first token, summed over requests."""


class Engine:
    """Answers requests with one model, each as if it were alone.

    Args:
        model: in evaluation mode.
        processor: of the model.
        limits: how much it takes on.

    Raises ValueError for a strategy that needs further images while it generates.
    """

    def __init__(
        self, model: PointAndCopyModel, processor: Processor, limits: EngineLimits | None = None
    ) -> None:
        if isinstance(model.strategy, Crop):
            raise ValueError(
                "the strategy crop encodes further images in the middle of an answer, which a running batch "
                "cannot; ask a Predictor"
            )
        self.model, self.processor, self.limits = model, processor, limits or EngineLimits()
        self.counts = Counts()
        self.batch = RunningBatch(model)
        self._waiting: deque[Request] = deque()
        self._running: dict[Row, Request] = {}
        self._condition = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="v1lit-engine", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Put a request in the queue.

        Raises EngineFullError where there is no room to wait, ValueError for a request larger than the
        engine, and RuntimeError after the engine has ended.
        """
        if request.tokens > self.limits.tokens:
            raise ValueError(
                f"prompt and answer have up to {request.tokens} tokens, and there is room for "
                f"{self.limits.tokens}; ask for fewer new tokens or send smaller images"
            )
        with self._condition:
            if self._closing or not self.alive:
                raise RuntimeError("the engine takes no further requests")
            if not self.has_room:
                self.counts.refused += 1
                raise EngineFullError(f"{len(self._waiting)} requests are waiting; try again later")
            self._waiting.append(request)
            self._condition.notify()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    @property
    def has_room(self) -> bool:
        """Whether one more request may wait, or be answered."""
        free = self.limits.rows - len(self._running)
        return len(self._waiting) < self.limits.waiting + max(0, free)

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def close(self, seconds: float = 0.0) -> None:
        """Take no further requests, give those that are there so long to end, and end the others."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        until = time.monotonic() + seconds
        while (self._running or self._waiting) and time.monotonic() < until and self._thread.is_alive():
            time.sleep(0.02)
        with self._condition:
            for request in [*self._waiting, *self._running.values()]:
                request.cancelled = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    # ---- in the engine's thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._waiting or self._running or self._closing):
                    self._condition.wait()
                if self._closing and not (self._waiting or self._running):
                    return
            try:
                self._let_in()
                self._step()
            except Exception as error:  # of a step, such as too little memory: it concerns all of its rows
                for row in list(self._running):
                    self._end(row, "error", error)

    def _let_in(self) -> None:
        """Prefill waiting requests while there is room, in their order."""
        self._forget_overdue()
        while request := self._next():
            choice = Choice(request.sampling, [*request.rules, *self._strategy_rules()])
            try:
                row = self.batch.join(request.prompt, choice)
            except Exception as error:
                self._tell_end(request, "error", error)
                continue
            self._running[row], request.noted = request, row.noted
            self.counts.prompt_tokens += len(request.prompt.input_ids)
            self.counts.first_token_seconds += time.monotonic() - request.begun
            self._tell_token(row, request)

    def _forget_overdue(self) -> None:
        """End the requests that nobody waits for any more, or not in time, before their turn comes."""
        with self._condition:
            ended = [(request, reason) for request in self._waiting if (reason := self._overdue(request))]
            for request, _ in ended:
                self._waiting.remove(request)
        for request, reason in ended:
            self._tell_end(request, reason)

    def _next(self) -> Request | None:
        with self._condition:
            if not self._waiting or len(self._running) >= self.limits.rows:
                return None
            held = sum(request.tokens for request in self._running.values())
            if held + self._waiting[0].tokens > self.limits.tokens:
                return None
            return self._waiting.popleft()

    def _step(self) -> None:
        for row, request in list(self._running.items()):
            ended = self._overdue(request)
            if ended is not None:
                self._end(row, ended)
        if not self._running:
            return
        begun = time.monotonic()
        self.batch.step()
        self.counts.steps += 1
        self.counts.step_seconds += time.monotonic() - begun
        for row, request in list(self._running.items()):
            self._tell_token(row, request)

    def _strategy_rules(self) -> list[LogitsProcessor]:
        config, strategy = self.model.config, self.model.strategy
        return strategy.steering(config.pointer_start, config.image_token_id, self.processor.encode_text)

    def _tell_token(self, row: Row, request: Request) -> None:
        """Hand on the token that a row has just chosen, or end it."""
        if row.error is not None:
            self._end(row, "error", row.error)
        elif row.last == self.processor.stop_token_id:
            self._end(row, "stop")
        else:
            self.counts.tokens += 1
            self._tell(request, row.last)
            if row.ids.shape[1] - len(request.prompt.input_ids) >= request.max_new_tokens:
                self._end(row, "length")

    def _end(self, row: Row, reason: Reason, error: Exception | None = None) -> None:
        request = self._running.pop(row)
        self.batch.leave(row)
        self._tell_end(request, reason, error)

    def _tell_end(self, request: Request, reason: Reason, error: Exception | None = None) -> None:
        self.counts.ended[reason] = self.counts.ended.get(reason, 0) + 1
        self._tell(request, None, reason, error)

    @staticmethod
    def _tell(
        request: Request, token: int | None, reason: Reason | None = None, error: Exception | None = None
    ) -> None:
        try:
            request.told(token, reason, error)
        except Exception:  # who asked is gone, such as a closed event loop
            request.cancelled = True

    @staticmethod
    def _overdue(request: Request) -> Reason | None:
        if request.cancelled:
            return "cancelled"
        late = request.seconds is not None and time.monotonic() - request.begun > request.seconds
        return "timeout" if late else None
