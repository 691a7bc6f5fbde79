"""Every rule holds for any logits, alone and together, and when a model samples or searches with beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.steered import FAMILY, PROCESSOR, RULES, START, STOP, VOCABULARY, Said, prompts, runs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from v1lit.data.encode.batch import collate
from v1lit.data.encode.encoding import Encoded
from v1lit.steering import Steering
from v1lit.testing.models import inputs, prefers_pointing


def walk(
    steering: Steering, given: list[Encoded], steps: int, seed: int, pointing: float, dull: float
) -> list[Said]:
    """Sample by random logits. `pointing` is added to pointers, `dull` times noise to all."""
    generator = torch.Generator().manual_seed(seed)
    batch = collate(given, PROCESSOR.pad_token_id, side="left")
    counts = torch.tensor([sum(map(len, example.patch_maps)) for example in given])
    ids, length = batch.input_ids, batch.input_ids.shape[1]
    rules = steering.rules(PROCESSOR, [example.patch_maps for example in given], length, VOCABULARY)
    for _ in range(steps):
        scores = scores_of(len(ids), counts, generator, pointing, dull)
        for rule in rules:
            scores = rule(ids, scores)
        assert (scores > torch.finfo(scores.dtype).min).any(1).all(), "nothing is left"
        ids = torch.cat([ids, torch.multinomial(scores.softmax(1), 1, generator=generator)], dim=1)
    return ids[:, length:].tolist()


def scores_of(rows: int, counts: Tensor, generator: torch.Generator, pointing: float, dull: float) -> Tensor:
    """`[rows, classes]`: random logits. `pointing` is added to pointers, `dull` times noise to all."""
    classes = START + int(counts.max())
    scores = torch.randn(rows, classes, generator=generator) * dull
    scores[:, START:] += pointing
    scores[:, PROCESSOR.image_token_id] = -torch.inf
    scores[torch.arange(classes) >= START + counts[:, None]] = torch.finfo(scores.dtype).min
    return scores


def search(
    steering: Steering, given: list[Encoded], steps: int, seed: int, pointing: float, dull: float
) -> list[list[Said]]:
    """All beams, three of every prompt, at the end of a search over random logits."""
    beams, generator = 3, torch.Generator().manual_seed(seed)
    batch = collate(given, PROCESSOR.pad_token_id, side="left")
    counts = torch.tensor([sum(map(len, example.patch_maps)) for example in given])
    length = batch.input_ids.shape[1]
    ids = batch.input_ids.repeat_interleave(beams, dim=0)
    likely = torch.tensor([0.0, *[-torch.inf] * (beams - 1)]).repeat(len(given))
    rules = steering.rules(PROCESSOR, [example.patch_maps for example in given], length, VOCABULARY)
    for _ in range(steps):
        scores = scores_of(len(ids), counts.repeat_interleave(beams), generator, pointing, dull)
        scores = scores.log_softmax(1)
        for rule in rules:
            scores = rule(ids, scores)
        scores = (scores + likely[:, None]).view(len(given), -1)
        likely, best = scores.topk(beams, dim=1)
        rows = best // (scores.shape[1] // beams) + torch.arange(len(given))[:, None] * beams
        ids = torch.cat([ids[rows.flatten()], best.view(-1, 1) % (scores.shape[1] // beams)], dim=1)
        likely = likely.flatten()
    alive = (likely > torch.finfo(likely.dtype).min).view(len(given), beams)
    said = ids[:, length:].view(len(given), beams, -1).tolist()
    return [
        [one for one, lives in zip(row, living, strict=True) if lives]
        for row, living in zip(said, alive.tolist(), strict=True)
    ]


ANY_LOGITS = {
    "steps": st.integers(20, 70),
    "seed": st.integers(0, 2**31),
    "pointing": st.sampled_from([-3.0, 0.0, 2.0, 6.0]),
    "dull": st.sampled_from([0.0, 1.0, 8.0]),
}


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=8)
@given(**ANY_LOGITS)
def test_it_holds_for_any_logits(name: str, steps: int, seed: int, pointing: float, dull: float) -> None:
    steering, check = RULES[name]
    given = prompts()
    for said, prompt in zip(walk(steering, given, steps, seed, pointing, dull), given, strict=True):
        check(said, prompt)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=3)
@given(**ANY_LOGITS)
def test_it_holds_for_all_beams_of_a_search(
    name: str, steps: int, seed: int, pointing: float, dull: float
) -> None:
    steering, check = RULES[name]
    given = prompts()
    for beams, prompt in zip(search(steering, given, steps, seed, pointing, dull), given, strict=True):
        assert beams, "nothing is left"
        for said in beams:
            check(said, prompt)


@settings(max_examples=15)
@given(together=st.sets(st.sampled_from(sorted(set(RULES) - {"no pointing"})), min_size=2), **ANY_LOGITS)
def test_rules_hold_together(together: set[str], steps: int, seed: int, pointing: float, dull: float) -> None:
    options = {
        name: value
        for rule in together
        for name, value in vars(RULES[rule][0]).items()
        if value != getattr(Steering(), name)
    }
    given = prompts()
    for said, prompt in zip(
        walk(Steering(**options), given, steps, seed, pointing, dull), given, strict=True
    ):
        for rule in together - {"look every", "queries"}:  # which ask for looks that another may forbid
            RULES[rule][1](said, prompt)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "search", [{"do_sample": True, "temperature": 2.0}, {"num_beams": 3}], ids=["sampled", "beams"]
)
def test_it_holds_where_a_model_samples_or_searches(name: str, search: dict[str, object]) -> None:
    steering, check = RULES[name]
    model, given = prefers_pointing(FAMILY), prompts((1, 0, 2))
    batch = collate(given, PROCESSOR.pad_token_id, side="left")
    length = batch.input_ids.shape[1]
    rules = steering.rules(PROCESSOR, [example.patch_maps for example in given], length, VOCABULARY)
    torch.manual_seed(0)
    stop = {"eos_token_id": STOP, "pad_token_id": PROCESSOR.pad_token_id}
    options: dict[str, Any] = {"logits_processor": rules, "max_new_tokens": 40, **stop, **search}
    out = model.generate(**inputs(batch), **options)[:, length:]
    for said, prompt in zip(out.tolist(), given, strict=True):
        if prompt.patch_maps:
            check(said, prompt)
        else:
            assert runs(said) == []
