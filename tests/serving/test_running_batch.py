"""Rows that join and leave a running batch get, token for token, what they get alone."""

from __future__ import annotations

import pytest
import torch

from v1lit.backbones import list_backbones
from v1lit.data.encode.batch import collate
from v1lit.pointer.model import PointAndCopyModel
from v1lit.serving.choice import Choice, Sampling
from v1lit.serving.running_batch import RunningBatch
from v1lit.testing.models import inputs, mixed, prefers_pointing, processor

IMAGES = (1, 0, 2, 1, 0)
LENGTHS = (6, 11, 3, 8, 9)
"""New tokens of every prompt."""


def alone(model: PointAndCopyModel, family: str) -> list[list[int]]:
    """What `generate` says to every prompt by itself."""
    said = []
    for prompt, length in zip(mixed(family, IMAGES), LENGTHS, strict=True):
        batch = collate([prompt], 0, side="left")
        limits = {"max_new_tokens": length, "min_new_tokens": length, "pad_token_id": 0, "do_sample": False}
        out = model.generate(**inputs(batch), eos_token_id=processor(family).stop_token_id, **limits)
        said.append(out[0, batch.input_ids.shape[1] :].tolist())
    return said


@pytest.mark.parametrize("family", list_backbones())
def test_rows_that_join_and_leave_say_what_they_say_alone(family: str) -> None:
    model = prefers_pointing(family)
    stop = processor(family).stop_token_id

    def never_stop(ids: torch.Tensor, logits: torch.Tensor) -> int:
        logits[:, stop] = -torch.inf
        return int(logits.argmax())

    batch, said, waiting = RunningBatch(model), {}, list(enumerate(mixed(family, IMAGES)))
    rows: dict[int, object] = {}
    while waiting or batch.rows:
        if waiting and len(batch.rows) < 3:
            number, prompt = waiting.pop(0)
            rows[number] = batch.join(prompt, never_stop)
        batch.step()
        for number, row in list(rows.items()):
            new = row.ids[0, len(mixed(family, IMAGES)[number].input_ids) :].tolist()
            if len(new) >= LENGTHS[number]:
                said[number] = new[: LENGTHS[number]]
                batch.leave(rows.pop(number))
    assert [said[number] for number in range(len(IMAGES))] == alone(model, family)
    assert batch.kept is None


def test_a_row_draws_the_same_whoever_is_beside_it() -> None:
    model, prompts = prefers_pointing("llava"), mixed("llava", IMAGES)

    def drawn(beside: int) -> list[int]:
        batch = RunningBatch(model)
        row = batch.join(prompts[0], Choice(Sampling(temperature=2.0, top_p=0.9, top_k=50, seed=3)))
        for other in prompts[1 : 1 + beside]:
            batch.join(other, Choice(Sampling(temperature=1.0)))
        for _ in range(8):
            batch.step()
        return row.ids[0].tolist()

    assert drawn(0) == drawn(3)
