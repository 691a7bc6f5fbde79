"""Requests that join and leave a running batch, beside micro-batches and one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from rows import Row

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.batch import collate
from v1lit.data.encode.encoding import Encoded
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.example import Message
from v1lit.pointer.model import PointAndCopyModel
from v1lit.serving.running_batch import RunningBatch
from v1lit.testing.models import noise

Answers = list[list[int]]


@dataclass(frozen=True)
class Load:
    """What is asked."""

    requests: int = 24
    rows: int = 8
    """Of a batch, and of a micro-batch."""
    longest: int = 40
    """New tokens of a request are a quarter of these to all of them."""
    repeats: int = 1


class Asked(Protocol):
    """A model with its processor."""

    model: PointAndCopyModel
    processor: Processor


def running_rows(bench: Asked, load: Load, command: str) -> list[Row]:
    """Processor time of the same requests in the three ways, in turn; every answer is compared."""
    prompts = [_prompt(bench.processor, number) for number in range(load.requests)]
    spread = 3 * load.longest // 4
    lengths = [load.longest - (7 * number * spread // 24) % (spread + 1) for number in range(load.requests)]
    ways: dict[str, Callable[[PointAndCopyModel, Sequence[Encoded], Sequence[int], int], Answers]]
    ways = {"one by one": _in_batches, f"micro-batches of {load.rows}": _in_batches, "running": _running}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, Answers] = {}
    for _ in range(load.repeats):
        for name, way in ways.items():
            begun = time.thread_time()
            said[name] = way(bench.model, prompts, lengths, 1 if name == "one by one" else load.rows)
            taken[name].append(time.thread_time() - begun)
    least = {name: min(times) for name, times in taken.items()}
    equal = sum(one == two for one, two in zip(said["running"], said["one by one"], strict=True))
    note = (
        f"{sum(lengths)} tokens of {load.requests} requests of {min(lengths)} to {max(lengths)}, prefill "
        f"included, {bench}; " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in least.items())
    )
    found: list[Row] = []
    for name, goal in (("one by one", 2.0), (f"micro-batches of {load.rows}", 1.2)):
        gain = least[name] / least["running"]
        found.append(
            Row(f"A running batch of {load.rows} rows / {name}, tokens/s", gain, "x", command,
                goal=f">= {goal:g}", met=gain >= goal, note="" if found else note)
        )  # fmt: skip
    equal_title = "Answers of a running batch that are those of single runs"
    return [
        *found,
        Row(equal_title, equal, f"of {load.requests}", command, goal="all", met=equal == load.requests),
    ]


def _prompt(processor: Processor, number: int) -> Encoded:
    """A question about no image, one or two."""
    pictures = [noise((140, 112 + 28 * (number % 3)), number + at) for at in range((1, 2, 0, 1)[number % 4])]
    message = Message("user", "<image>\n" * len(pictures) + "Where is it? " * (1 + number % 5))
    return encode_prompt(f"request {number}", [message], pictures, processor, EncodingConfig())


def _in_batches(
    model: PointAndCopyModel, prompts: Sequence[Encoded], lengths: Sequence[int], rows: int
) -> Answers:
    """By `generate`: each batch runs until its longest answer is whole."""
    said: Answers = []
    for at in range(0, len(prompts), rows):
        batch, own = collate(prompts[at : at + rows], 0, side="left"), lengths[at : at + rows]
        inputs: dict[str, Any] = {**batch.image_inputs}
        out = model.generate(
            batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=max(own), **inputs
        )
        new = out[:, batch.input_ids.shape[1] :].tolist()
        said += [row[:length] for row, length in zip(new, own, strict=True)]
    return said


def _running(
    model: PointAndCopyModel, prompts: Sequence[Encoded], lengths: Sequence[int], rows: int
) -> Answers:
    batch, waiting = RunningBatch(model), list(range(len(prompts)))
    said: dict[int, list[int]] = {}
    at_work: dict[int, Any] = {}
    while waiting or at_work:
        while waiting and len(at_work) < rows:
            number = waiting.pop(0)
            at_work[number] = batch.join(prompts[number], _likeliest)
        batch.step()
        for number, row in list(at_work.items()):
            new = row.ids[0, len(prompts[number].input_ids) :]
            if len(new) >= lengths[number]:
                said[number] = new[: lengths[number]].tolist()
                batch.leave(at_work.pop(number))
    return [said[number] for number in range(len(prompts))]


def _likeliest(ids: torch.Tensor, logits: torch.Tensor) -> int:
    return int(logits.argmax())
