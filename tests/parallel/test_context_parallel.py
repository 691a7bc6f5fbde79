"""A model whose ranks share the tokens of packed rows is the whole model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.forked import needs_fork
from helpers.gloo_ranks import on_ranks
from helpers.one_step import FAMILIES, OPTIONS, divided, layout_of, steps
from hypothesis import given
from hypothesis import strategies as st

from v1lit.data.encode.batch import flatten
from v1lit.parallel.context_parallel import refuse_sharing, shared_key_heads
from v1lit.parallel.sharding import CONTEXT
from v1lit.testing.models import build, inputs, packed_batch, training_batch, training_examples

FAMILY = "qwen2_5_vl"


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_on_ranks_is_that_of_one_process(family: str, tmp_path: Path) -> None:
    layout, options = layout_of(family), list(OPTIONS)[:: 1 if family == FAMILY else 2]
    on_ranks(math.prod(layout), tmp_path, steps, family, layout, CONTEXT, options)


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize(("layout", "ranks"), [((1, 1, 2), 2), ((2, 1, 2), 4), ((1, 1, 4), 4)])
def test_so_it_is_on_2_ranks_on_two_copies_of_2_and_with_fewer_key_heads_than_ranks(
    layout: tuple[int, ...], ranks: int, tmp_path: Path
) -> None:
    on_ranks(ranks, tmp_path, steps, FAMILY, layout, CONTEXT, list(OPTIONS)[1:3])


def odd_row(rank: int) -> None:
    """A row that two ranks share, of a number of tokens that is no multiple of two."""
    model = build("internvl").eval()
    batch = packed_batch("internvl", (0,))
    assert batch.input_ids.shape[1] % 2
    with torch.no_grad():
        found = divided(model, (1, 1, 2), CONTEXT).eval()(**inputs(batch)).logits
        torch.testing.assert_close(found, model(**inputs(batch)).logits, rtol=1e-4, atol=1e-5)


@needs_fork
def test_a_row_that_does_not_divide_is_filled_up_and_cut_again(tmp_path: Path) -> None:
    on_ranks(2, tmp_path, odd_row)


def padded_rows(rank: int) -> None:
    model, batch = divided(build(FAMILY), (1, 1, 2), CONTEXT), training_batch(FAMILY)
    with pytest.raises(ValueError, match="only where they are packed: give segment_lengths"):
        model(**inputs(batch), labels=batch.labels)


@needs_fork
def test_padded_rows_are_refused(tmp_path: Path) -> None:
    on_ranks(2, tmp_path, padded_rows)


def kept_by_decoder(rank: int, size: int) -> tuple[int, int]:
    """Bytes that autograd keeps for the backward pass of the decoder, weights left out; tokens of the row."""
    model = divided(build(FAMILY).train(), (1, 1, size), CONTEXT).train()
    batch = flatten(list(training_examples(FAMILY)) * 20)
    decoder, seen = model.backbone.get_decoder(), {}
    weights = {tuple(sorted(p.shape)) for p in build(FAMILY).parameters()}
    inside: list[Any] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if inside and tuple(sorted(tensor.shape)) not in weights:  # also transposed
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    decoder.register_forward_pre_hook(lambda *_: inside.append(True))
    decoder.register_forward_hook(lambda *_: inside.clear())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(**inputs(batch), labels=batch.labels)
    out.loss.backward()
    return sum(seen.values()), batch.input_ids.shape[1]


@needs_fork
@pytest.mark.slow
def test_the_decoder_keeps_its_part_of_the_tokens(tmp_path: Path) -> None:
    one, *_ = on_ranks(1, tmp_path, kept_by_decoder, 1)
    for size in (2, 4):
        for kept, tokens in on_ranks(size, tmp_path, kept_by_decoder, size):
            print(f"{size} ranks: {kept / 2**20:.2f} of {one[0] / 2**20:.2f} MiB, row of {tokens} tokens")
            assert kept < 1.25 * one[0] / size


# ------------------------------------------------------------------ heads


def test_heads_that_do_not_divide_are_refused_by_name() -> None:
    config = build(FAMILY).config.get_text_config()
    refuse_sharing(config, 4)
    linear = build("qwen3_5").config.get_text_config()
    refuse_sharing(linear, 1)
    with pytest.raises(ValueError, match=r"linear attention of qwen3_5_text carry a state.*\s+give 1, and"):
        refuse_sharing(linear, 2)
    with pytest.raises(ValueError, match=r"num_attention_heads=4 .*8 ranks"):
        refuse_sharing(config, 8)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_key_heads_are_repeated_as_often_as_needed_and_no_more(a: int, b: int, c: int, d: int) -> None:
    key_heads, heads = a * b, a * b * c * d
    for ranks in (n for n in range(1, heads + 1) if heads % n == 0):
        times = shared_key_heads(heads, key_heads, ranks)
        fits = [
            n
            for n in range(1, heads // key_heads + 1)
            if key_heads * n % ranks == 0 and heads % (key_heads * n) == 0
        ]
        assert times == min(fits)
