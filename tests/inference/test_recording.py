"""What is noted while a model generates is what a teacher-forced pass over the same tokens says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from v1lit.backbones import list_backbones
from v1lit.backbones.config import BackboneConfig
from v1lit.data.encode.batch import Batch, collate
from v1lit.inference.recording import Record, Recording
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.testing.models import inputs, mixed, prefers_pointing, processor

pytestmark = pytest.mark.dependencies

NEW = 6
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 2.0, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "uncached": {"use_cache": False},
}
STRATEGIES: dict[str, tuple[RevisitConfig, PointerConfig]] = {
    "ends": (RevisitConfig("point_and_copy", {"end": "pointer"}), PointerConfig(gate=True)),
    "suppressed": (RevisitConfig("point_and_copy", {"suppress": "trace"}), PointerConfig(width=32)),
    "point_only": (RevisitConfig("point_only"), PointerConfig()),
    "multi_patch": (RevisitConfig("multi_patch"), PointerConfig()),
    "noise": (RevisitConfig(control="noise_copy"), PointerConfig(tie_heads=True)),
    "coordinates": (RevisitConfig("coordinates"), PointerConfig()),
}


def built(strategy: str) -> PointAndCopyModel:
    """A tiny model that likes to point, with large weights, of that strategy."""
    torch.manual_seed(1)
    revisit, pointer = STRATEGIES[strategy]
    model = PointAndCopyModel.build(BackboneConfig("qwen2_5_vl"), pointer, revisit)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "norm" not in name:
                parameter.mul_(4.0)
        model.pointer_head.query.weight.mul_(24.0)
    return model.eval()


def recorded(model: PointAndCopyModel, batch: Batch, **options: Any) -> tuple[Tensor, list[Record]]:
    """Ids behind the prompts, `[rows, NEW]`, and their records."""
    torch.manual_seed(0)
    recording = Recording(model.config.pointer_start)
    limits = {"max_new_tokens": NEW, "min_new_tokens": NEW, "eos_token_id": 1, "pad_token_id": 0}
    out = model.generate(
        **inputs(batch),
        **limits,
        watch=recording,
        return_dict_in_generate=True,
        **{"do_sample": False} | options,
    )
    new = out.sequences[:, batch.input_ids.shape[1] :]
    patches = (batch.input_ids == model.config.image_token_id).sum(1)
    patches = patches.repeat_interleave(len(new) // len(patches))
    return new, recording.finish(new, patches.tolist(), getattr(out, "beam_indices", None))


def forced(model: PointAndCopyModel, batch: Batch, new: Tensor) -> Tensor:
    """`[rows, NEW, V + pointers]`: joint logits in front of every new token, of one pass over all of them."""
    copies = len(new) // len(batch.input_ids)
    logits = []
    for copy in range(copies):
        own = new[copy::copies]
        ids = torch.cat([batch.input_ids, own], dim=1)
        mask = torch.cat([batch.attention_mask, torch.ones_like(own)], dim=1)
        with torch.no_grad():
            out = model(ids, mask, **batch.image_inputs)
        logits.append(out.logits[:, -NEW - 1 : -1])
    return torch.stack(logits, dim=1).flatten(0, 1)


def assert_equal(model: PointAndCopyModel, batch: Batch, new: Tensor, records: list[Record]) -> int:
    """Compare with the forced pass; returns how many pointers there were."""
    start, logits, pointed = model.config.pointer_start, forced(model, batch, new), 0
    for row, record in enumerate(records):
        likely = logits[row].log_softmax(dim=1)
        distributions = logits[row][:, start : start + record.patches].softmax(dim=1)
        torch.testing.assert_close(record.distributions, distributions, atol=2e-4, rtol=1e-3)
        entropies = torch.special.entr(distributions).sum(1)
        torch.testing.assert_close(record.entropies, entropies, atol=1e-3, rtol=1e-3)
        if record.logprobs is not None:
            chosen = likely.gather(1, new[row][:, None])[:, 0]
            torch.testing.assert_close(record.logprobs, chosen, atol=1e-3, rtol=1e-3)
        for step, token in enumerate(new[row].tolist()):
            if token >= start:
                pointed += 1
                probability = record.probability(step, token - start)
                assert probability == pytest.approx(float(likely[step, token].exp()), abs=1e-4, rel=1e-3)
    return pointed


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", list_backbones())
def test_every_family_notes_what_a_forced_pass_finds(family: str, mode: str) -> None:
    model = prefers_pointing(family)
    batch = collate(mixed(family), processor(family).pad_token_id, side="left")
    new, records = recorded(model, batch, **MODES[mode])
    assert assert_equal(model, batch, new, records) > 0
    assert all((record.logprobs is None) == (mode == "beams") for record in records)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_so_does_every_strategy(strategy: str) -> None:
    model = built(strategy)
    batch = collate(mixed("qwen2_5_vl"), processor("qwen2_5_vl").pad_token_id, side="left")
    new, records = recorded(model, batch)
    pointed = assert_equal(model, batch, new, records)
    assert (pointed > 0) == model.strategy.points


def test_what_steers_does_not_change_what_is_noted() -> None:
    class Never(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores.index_fill(1, torch.arange(5, 400), -torch.inf)

    model = prefers_pointing("qwen2_5_vl")
    batch = collate(mixed("qwen2_5_vl"), 0, side="left")
    for mode in ("greedy", "beams"):
        new, records = recorded(model, batch, logits_processor=[Never()], **MODES[mode])
        assert not ((new >= 5) & (new < 400)).any()
        assert_equal(model, batch, new, records)


def test_records_end_with_their_rows() -> None:
    """Rows of beams that ended early have fewer tokens than steps; nothing is made up for the rest."""
    model = prefers_pointing("qwen2_5_vl")
    batch = collate(mixed("qwen2_5_vl", (1,)), 0, side="left")
    config = GenerationConfig(max_new_tokens=1, num_beams=2, do_sample=False, eos_token_id=1, pad_token_id=0)
    recording = Recording(model.config.pointer_start)
    out = model.generate(
        **inputs(batch), generation_config=config, watch=recording, return_dict_in_generate=True
    )
    (record,) = recording.finish(out.sequences[:, -1:], [12], out.beam_indices)
    assert record.totals.shape == (1,)
    (nothing,) = recording.finish(out.sequences[:, :0], [12], None)
    assert nothing.distributions.shape == (0, 12)
