"""Generation on every family, beyond what `check_backbone` compares."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from v1lit.backbones import BackboneConfig, list_backbones
from v1lit.data.encode.batch import Batch, collate
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.output import PointAndCopyOutput
from v1lit.revisit.config import RevisitConfig
from v1lit.revisit.registry import list_strategies
from v1lit.testing.model_checks import MODES
from v1lit.testing.models import (
    build,
    generate,
    inputs,
    mixed,
    packed_batch,
    prefers_pointing,
    processor,
)

pytestmark = pytest.mark.dependencies


def prompts(family: str, images: tuple[int, ...] = (1, 0, 2)) -> Batch:
    return collate(mixed(family, images), processor(family).pad_token_id, side="left")


@pytest.mark.parametrize("family", list_backbones())
def test_greedy_is_the_most_likely_next_token_of_a_full_forward_pass(family: str) -> None:
    model = prefers_pointing(family)
    batch = prompts(family, (1,))
    ids, banned = batch.input_ids, [model.config.image_token_id, processor(family).stop_token_id]
    generated = generate(model, batch, do_sample=False)[0].tolist()
    for token in generated:
        with torch.no_grad():
            logits = model(ids, torch.ones_like(ids), **batch.image_inputs).logits[0, -1]
        logits[banned] = -torch.inf
        assert int(logits.argmax()) == token
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


@pytest.mark.parametrize("family", list_backbones())
def test_no_pointer_past_a_rows_own_images_and_no_placeholder(family: str) -> None:
    model, batch = prefers_pointing(family), prompts(family)
    out = generate(model, batch, do_sample=True, temperature=3.0, num_return_sequences=8)
    counts = (batch.input_ids == model.config.image_token_id).sum(dim=1).repeat_interleave(8)
    assert (out < model.config.pointer_start + counts[:, None]).all()
    assert (out != model.config.image_token_id).all()


@pytest.mark.parametrize(
    ("family", "strategy"),
    [
        *((family, "point_and_copy") for family in list_backbones()),
        *(("qwen2_5_vl", name) for name in list_strategies() if name != "point_and_copy"),
    ],
)
def test_the_placeholder_is_never_generated_however_likely_it_is(family: str, strategy: str) -> None:
    torch.manual_seed(0)
    model = PointAndCopyModel.build(BackboneConfig(family), revisit=RevisitConfig(strategy)).eval()
    batch, image = prompts(family, (1, 0)), model.config.image_token_id
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, out: out.index_fill(-1, torch.tensor(image), 1e4))
    with torch.no_grad():
        assert (model(**inputs(batch)).logits[:, -1].argmax(-1) == image).all()
    words = {"encode_text": processor(family).encode_text}
    for mode in ("greedy", "sampling", *(["beams"] if model.strategy.beams else [])):
        assert (generate(model, batch, **MODES[mode], **words) != image).all()
    assert (generate(model, prompts(family, (1,)), use_cache=False, **words) != image).all()


def test_what_was_found_likely_is_told_before_the_placeholder_is_taken_out() -> None:
    model, batch = prefers_pointing("llava"), prompts("llava", (1,))
    found: list[torch.Tensor] = []

    class Told:
        def reads(self, ids: torch.Tensor) -> None: ...

        def finds(self, output: PointAndCopyOutput) -> None:
            assert output.logits is not None
            found.append(output.logits[:, -1].clone())

    generate(model, batch, watch=Told())
    with torch.no_grad():
        torch.testing.assert_close(found[0], model(**inputs(batch)).logits[:, -1])
    assert all(logits.isfinite().all() for logits in found)


def test_beams_keep_every_row_with_its_own_images() -> None:
    """The same question about two images, as one batch, in both orders."""
    model = prefers_pointing("qwen2_5_vl")
    a, b = mixed("qwen2_5_vl", (1, 1))
    pad = processor("qwen2_5_vl").pad_token_id
    forward = generate(model, collate([a, b], pad, side="left"), num_beams=3)
    backward = generate(model, collate([b, a], pad, side="left"), num_beams=3)
    assert torch.equal(forward, backward.flip(0))
    assert not torch.equal(forward[0], forward[1])


@pytest.mark.parametrize("as_setting", [False, True])
@pytest.mark.parametrize("option", ["prompt_lookup_num_tokens", "prefill_chunk_size"])
def test_options_that_read_several_tokens_at_once_are_refused_by_name(option: str, as_setting: bool) -> None:
    model, batch = prefers_pointing("llava"), prompts("llava", (1,))
    given: dict[str, Any] = {option: 2}
    if as_setting:
        given = {"generation_config": GenerationConfig(**given)}
    with pytest.raises(ValueError, match=rf"{option}: .*several tokens at a time"):
        model.generate(**inputs(batch), **given, max_new_tokens=4)


def test_a_packed_row_of_several_segments_has_no_logits() -> None:
    model, batch = build("llava"), packed_batch("llava", (1, 2))
    with pytest.raises(ValueError, match="has a loss, no logits: each segment points at other image tokens"):
        model(**inputs(batch))
    assert model(**inputs(batch), labels=batch.labels).loss.isfinite()


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_going_on_from_a_cache_needs_the_memory(name: str) -> None:
    model, batch = build("llava"), prompts("llava", (1,))
    with torch.no_grad():
        out = model(**inputs(batch), use_cache=True)
        with pytest.raises(ValueError, match="pointer_memory"):
            model(batch.input_ids[:, -1:], **{name: out.cache})


@pytest.mark.parametrize("family", list_backbones())
def test_the_decoder_fills_the_cache_it_is_given_and_nothing_warns(family: str) -> None:
    # A decoder swallows a cache under another version's name without a word, and then sees no past.
    model, batch = build(family), prompts(family, (1,))
    cache = DynamicCache(config=model.config.get_text_config())
    batch_inputs = inputs(batch)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        out = model(**batch_inputs, use_cache=True, cache=cache)
        assert out.cache is cache
        assert cache.get_seq_length() == batch.input_ids.shape[1]
        generate(model, batch)


@pytest.mark.parametrize("family", list_backbones())
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_second_turn_goes_on_from_the_first_ones_cache(family: str, name: str) -> None:
    model, batch = prefers_pointing(family), prompts(family, (1,))
    cache = DynamicCache(config=model.config.get_text_config())
    start = batch.input_ids.shape[1]
    with torch.no_grad():
        memory = model(**inputs(batch)).pointer_memory
    first = generate(model, batch, **{name: cache})
    turn = torch.cat([batch.input_ids, first, batch.input_ids[:, -3:]], dim=1)
    safe = turn.masked_fill(turn >= model.config.pointer_start, 0)
    images = {n: v for n, v in inputs(batch).items() if n in model.family.image_inputs}
    mask = torch.ones_like(turn)
    again = {
        "attention_mask": mask,
        "position_ids": model.family.positions(model.backbone, safe, mask, **images),
        "max_new_tokens": 5,
        "min_new_tokens": 5,
        "eos_token_id": -1,
        "pad_token_id": 0,
        "do_sample": False,
    }
    assert start < cache.get_seq_length() < turn.shape[1]
    known = {name: cache, "pointer_memory": memory, "image_embeds": memory.values}
    assert torch.equal(model.generate(turn, **again, **known), model.generate(turn, **again, **images))


def test_tokens_that_the_settings_suppress_stay_suppressed() -> None:
    model, batch = prefers_pointing("qwen2_5_vl"), prompts("qwen2_5_vl")
    unwanted = sorted(set(generate(model, batch)[0].tolist()))
    model.generation_config.suppress_tokens = unwanted
    assert not set(unwanted) & set(generate(model, batch)[0].tolist())
    # What a call says comes first.
    assert set(unwanted) & set(generate(model, batch, suppress_tokens=[])[0].tolist())
