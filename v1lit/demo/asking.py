"""A question as the page has it, and its answer while it is written."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteriaList

from v1lit.demo.limits import Deadline, DemoLimits
from v1lit.inference.prediction import Prediction
from v1lit.inference.predictor import Predictor
from v1lit.inference.prompt import longest_sequence, make_prompt
from v1lit.inference.reading import read_answer
from v1lit.inference.streaming import Listener, iterate
from v1lit.steering import Steering

SHOWN_EVERY = 0.1
"""Seconds between two looks at an answer that is being written."""
_SEPARATOR = re.compile(r"[\s,;]+")


@dataclass(frozen=True)
class Ask:
    """What is asked, and how."""

    picture: Image.Image
    question: str
    max_new_tokens: int = 256
    temperature: float = 0.0
    """Of the softmax; 0 takes the most likely token."""
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    steer: Steering = field(default_factory=Steering)

    @property
    def generate(self) -> dict[str, Any]:
        """Options of `Predictor.batch`."""
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return {"repetition_penalty": self.repetition_penalty, **(drawn if self.temperature else {})}


def check_ask(ask: Ask, limits: DemoLimits) -> None:
    """Raise ValueError for an empty question, and for what is over the limits."""
    if not ask.question.strip():
        raise ValueError("there is no question: write one, or choose an example")
    if len(ask.question) > limits.characters:
        raise ValueError(
            f"the question has {len(ask.question)} characters; {limits.characters} is the limit here"
        )
    if not 1 <= ask.max_new_tokens <= limits.new_tokens:
        raise ValueError(f"an answer has 1 to {limits.new_tokens} tokens here, not {ask.max_new_tokens}")


def answer(predictor: Predictor, ask: Ask, deadline: Deadline) -> Iterator[Prediction]:
    """The answer as far as it is written, every now and then; the last one is whole, with distributions.

    Raises ValueError as `Predictor.batch`. Who leaves the loop ends the generation.
    """
    model, processor = predictor.model, predictor.processor
    prompt = make_prompt("the question", [ask.picture], ask.question, processor, longest_sequence(model))
    maps, length = prompt.encoded.patch_maps, len(prompt.encoded.input_ids)

    def work(listener: Listener) -> None:
        predictor.answer(
            [prompt],
            ask.max_new_tokens,
            on_part=listener,
            distributions=True,
            steer=None if ask.steer == Steering() else ask.steer,
            stopping_criteria=StoppingCriteriaList([deadline]),
            **ask.generate,
        )

    torch.manual_seed(ask.seed)
    due = 0.0
    for part in iterate(work):
        if part.prediction is not None:
            yield part.prediction
        elif time.monotonic() >= due:
            unfinished = read_answer(part.ids, None, maps, length, processor, model.strategy)
            yield replace(unfinished, question=prompt.words, pictures=prompt.given)
            due = time.monotonic() + SHOWN_EVERY


def read_boxes(name: str, text: str) -> list[tuple[float, ...]]:
    """Boxes as they are typed, one on a line: `x1, y1, x2, y2`.

    Raises ValueError with `name` and the line that is no box.
    """
    boxes: list[tuple[float, ...]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                box: tuple[float, ...] = tuple(map(float, _SEPARATOR.split(line.strip(" \t,;[]()"))))
            except ValueError:
                box = ()
            if len(box) != 4:
                raise ValueError(f"{name}, line {number}: a box is x1, y1, x2, y2 in pixels, not {line!r}")
            boxes.append(box)
    return boxes
