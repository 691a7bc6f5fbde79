"""The engine: answers as alone, limits, requests that are cancelled, late or broken, and its end."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

from v1lit.data.encode.batch import collate
from v1lit.data.encode.encoding import Encoded
from v1lit.serving.choice import Sampling
from v1lit.serving.engine import Engine, EngineFullError, EngineLimits, Request
from v1lit.testing.models import inputs, mixed, prefers_pointing, processor

FAMILY = "qwen2_5_vl"
PROMPTS = mixed(FAMILY, (1, 0, 2))
MODEL = prefers_pointing(FAMILY)
STOP = processor(FAMILY).stop_token_id


class Asked:
    """A request and what came of it."""

    def __init__(self, engine: Engine, prompt: Encoded, tokens: int = 8, **options: Any) -> None:
        self.heard: queue.Queue[tuple[Any, Any, Any]] = queue.Queue()
        self.request = Request(prompt, tokens, lambda *said: self.heard.put(said), **options)
        engine.submit(self.request)

    def answer(self) -> tuple[list[int], str, Exception | None]:
        """Its tokens, the reason of its end and the error."""
        said = []
        while True:
            token, reason, error = self.heard.get(timeout=120)
            if reason is not None:
                return said, reason, error
            said.append(token)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(MODEL, processor(FAMILY), EngineLimits(rows=2, waiting=2, tokens=2000))
    engine.start()
    yield engine
    engine.close()


class Slow(LogitsProcessor):
    """Waits until it is told to go on."""

    def __init__(self) -> None:
        self.gate = queue.Queue[None]()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.gate.get(timeout=60)
        self.gate.put(None)
        return scores


class Stepwise(Slow):
    """Waits before every token, and never lets an answer end by itself."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.gate.get(timeout=60)
        return scores.index_fill(1, torch.tensor([STOP]), -torch.inf)


class Broken(LogitsProcessor):
    """Raises at the third token."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3:
            raise ValueError("a rule that cannot hold")
        return scores


def alone(prompt: Encoded, tokens: int) -> list[int]:
    batch = collate([prompt], 0, side="left")
    out = MODEL.generate(
        **inputs(batch), max_new_tokens=tokens, eos_token_id=STOP, pad_token_id=0, do_sample=False
    )
    said = out[0, batch.input_ids.shape[1] :].tolist()
    return said[: said.index(STOP)] if STOP in said else said


def test_every_request_gets_what_it_gets_alone(engine: Engine) -> None:
    asked = [Asked(engine, PROMPTS[n % 3], 5 + n) for n in range(4)]
    for number, one in enumerate(asked):
        said, reason, error = one.answer()
        assert error is None
        assert said == alone(PROMPTS[number % 3], 5 + number)
        assert reason == ("length" if len(said) == 5 + number else "stop")
    assert engine.counts.tokens == sum(len(alone(PROMPTS[n % 3], 5 + n)) for n in range(4))
    assert engine.counts.prompt_tokens == sum(len(PROMPTS[n % 3].input_ids) for n in range(4))


def test_more_than_may_wait_are_refused_and_then_there_is_room_again(engine: Engine) -> None:
    slow = Slow()
    first = [Asked(engine, PROMPTS[1], rules=[slow]) for _ in range(2)]
    while engine.waiting == 2:  # the engine waits in the first one's rule
        time.sleep(0.01)
    with pytest.raises(EngineFullError, match="requests are waiting"):
        first += [Asked(engine, PROMPTS[1]) for _ in range(6)]
    slow.gate.put(None)
    assert {one.answer()[1] for one in first} <= {"length", "stop"}
    assert Asked(engine, PROMPTS[1]).answer()[1] in ("length", "stop")
    assert engine.counts.refused == 1


def test_who_is_gone_or_too_late_frees_the_row(engine: Engine) -> None:
    slow = Slow()
    gone = Asked(engine, PROMPTS[0], 500, rules=[slow])
    gone.request.cancelled = True
    slow.gate.put(None)
    assert gone.answer()[1] == "cancelled"
    late = Asked(engine, PROMPTS[0], 500, seconds=-1.0)
    assert late.answer()[:2] == ([], "timeout")
    assert engine.counts.ended == {"cancelled": 1, "timeout": 1}


def test_who_waits_ends_in_time_though_no_row_is_free() -> None:
    engine, stepwise = Engine(MODEL, processor(FAMILY), EngineLimits(rows=1, waiting=4)), Stepwise()
    engine.start()
    busy = Asked(engine, PROMPTS[1], 500, rules=[stepwise])
    stepwise.gate.put(None)
    assert busy.heard.get(timeout=120)[0] is not None  # it has the only row, and its next step waits
    late, gone = Asked(engine, PROMPTS[1], seconds=-1.0), Asked(engine, PROMPTS[1])
    gone.request.cancelled = True
    stepwise.gate.put(None)
    assert late.answer()[:2] == ([], "timeout")
    assert gone.answer()[:2] == ([], "cancelled")
    assert (engine.running, engine.waiting) == (1, 0)
    busy.request.cancelled = True
    stepwise.gate.put(None)
    assert busy.answer()[1] == "cancelled"
    engine.close()


def test_a_rule_that_fails_ends_its_own_request_alone(engine: Engine) -> None:
    other, broken = Asked(engine, PROMPTS[2]), Asked(engine, PROMPTS[0], rules=[Broken()])
    said, reason, error = broken.answer()
    assert (len(said), reason, str(error)) == (2, "error", "a rule that cannot hold")
    assert other.answer()[0] == alone(PROMPTS[2], 8)


def test_a_request_larger_than_the_engine_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(ValueError, match="there is room for 2000"):
        Asked(engine, PROMPTS[0], 3000)


def test_a_step_that_fails_ends_its_rows_and_the_engine_goes_on(engine: Engine, monkeypatch: Any) -> None:
    def no_memory() -> None:
        raise MemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(engine.batch, "step", no_memory)
        said, reason, error = Asked(engine, PROMPTS[0]).answer()
        assert (len(said), reason, str(error)) == (1, "error", "none left")
    assert Asked(engine, PROMPTS[0]).answer()[0] == alone(PROMPTS[0], 8)


def test_draws_depend_on_the_seed_alone(engine: Engine) -> None:
    def draw(seed: int) -> list[int]:
        return Asked(engine, PROMPTS[0], sampling=Sampling(temperature=2.0, seed=seed)).answer()[0]

    first = draw(1)
    Asked(engine, PROMPTS[1], sampling=Sampling(temperature=1.0))
    assert draw(1) == first
    assert draw(2) != first


def test_at_the_end_what_runs_is_ended_and_nothing_more_is_taken() -> None:
    engine = Engine(MODEL, processor(FAMILY))
    engine.start()
    asked = Asked(engine, PROMPTS[0], 4)
    engine.close(seconds=60)
    assert asked.answer()[1] in ("length", "stop")
    with pytest.raises(RuntimeError, match="no further"):
        Asked(engine, PROMPTS[0])
