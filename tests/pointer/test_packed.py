"""Packed equals alone: losses, gradients and pointers of examples that share a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v1lit.backbones import list_backbones
from v1lit.data.encode.batch import Batch, collate, flatten
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.testing.models import build, inputs, packed_batch, processor, training_batch, training_examples

pytestmark = pytest.mark.dependencies

OPTIONS = {
    "default": PointerConfig(),
    "embedding keys": PointerConfig(key_source="embedding"),
    "gate": PointerConfig(gate=True),
    "separate": PointerConfig(loss="separate", z_weight=0.0),
    "smoothed, first pointers count more": PointerConfig(label_smoothing=0.1, first_pointer_weight=4.0),
}


def gradients(
    model: PointAndCopyModel, batches: Sequence[Batch], **arguments: object
) -> dict[str, torch.Tensor]:
    """Of the sum of the losses of the batches."""
    model.zero_grad()
    for batch in batches:
        model(**inputs(batch), labels=batch.labels, **arguments).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(value.abs().max().item() for value in theirs.values())
    for name, value in theirs.items():
        allowed = 1e-4 * value.abs().max().item() + 1e-6 * largest
        assert (ours[name] - value).abs().max().item() <= allowed, name


@pytest.mark.parametrize("family", list_backbones())
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_packed_losses_and_gradients_are_those_of_padded_rows(family: str, options: PointerConfig) -> None:
    model = build(family, options)
    padded, packed = training_batch(family), packed_batch(family)
    with torch.no_grad():
        theirs = model(**inputs(padded), labels=padded.labels, reduction="none").loss
        ours = model(**inputs(packed), labels=packed.labels, reduction="none").loss
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert_alike(gradients(model, [packed]), gradients(model, [padded]))


@pytest.mark.parametrize("family", list_backbones())
def test_packed_examples_are_as_each_alone(family: str) -> None:
    model = build(family)
    examples = training_examples(family, (2, 0, 1, 1))
    alone = [collate([example], processor(family).pad_token_id) for example in examples]
    packed = flatten(examples)
    assert_alike(gradients(model, [packed], reduction="sum"), gradients(model, alone, reduction="sum"))


@pytest.mark.parametrize("family", list_backbones())
def test_an_example_does_not_see_its_neighbours(family: str) -> None:
    """Losses stay exactly the same when the neighbours' texts and pictures become others."""
    model = build(family)
    one, first, second = training_examples(family, (1, 1, 2))
    changed = [
        replace(
            example,
            input_ids=torch.where(example.input_ids == example.labels, 7, example.input_ids),
            image_inputs={
                name: values + 0.5 if values.is_floating_point() else values
                for name, values in example.image_inputs.items()
            },
        )
        for example in (first, second)
    ]

    def losses(neighbours: Sequence[object]) -> torch.Tensor:
        batch = flatten([neighbours[0], one, neighbours[1]])  # type: ignore[list-item]
        with torch.no_grad():
            return model(**inputs(batch), labels=batch.labels, reduction="none").loss

    before, after = losses((first, second)), losses(changed)
    skipped, own = int((first.labels != -100).sum()), int((one.labels != -100).sum())
    assert torch.equal(before[skipped : skipped + own], after[skipped : skipped + own])
    assert not torch.equal(before[:skipped], after[:skipped])
    assert not torch.equal(before[skipped + own :], after[skipped + own :])


@settings(max_examples=15, deadline=None)
@given(images=st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_any_mix_of_examples_packs(images: list[int]) -> None:
    model = build("qwen2_5_vl")
    padded, packed = training_batch("qwen2_5_vl", tuple(images)), packed_batch("qwen2_5_vl", tuple(images))
    with torch.no_grad():
        theirs = model(**inputs(padded), labels=padded.labels)
        ours = model(**inputs(packed), labels=packed.labels)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.terms.predictions, theirs.terms.predictions)
    assert torch.equal(ours.targets, theirs.targets)


def test_the_last_token_of_an_example_does_not_learn_the_first_of_the_next() -> None:
    """With everything learned, a first token has a label, and on its own nothing predicts it."""
    model = build("qwen2_5_vl")
    examples = [
        replace(e, labels=e.input_ids.masked_fill(e.input_ids == model.config.image_token_id, -100))
        for e in training_examples("qwen2_5_vl")
    ]
    batch = flatten(examples)
    assert batch.labels[0, batch.segment_lengths[0]] != -100
    out = model(**inputs(batch), labels=batch.labels)
    alone = [collate([example], 0) for example in examples]
    expected = torch.cat([model(**inputs(one), labels=one.labels).targets for one in alone])
    assert torch.equal(out.targets, expected)


def test_a_pointer_beyond_its_own_example_is_refused() -> None:
    """Its neighbour has the image token; the example itself does not."""
    model = build("qwen2_5_vl")
    batch = packed_batch("qwen2_5_vl", (1, 2))
    start = model.config.pointer_start
    own = int((batch.input_ids[0, : batch.segment_lengths[0]] == model.config.image_token_id).sum())
    ids = batch.input_ids.clone()
    place = int((ids[0] >= start).nonzero()[0])
    ids[0, place] = start + own
    with pytest.raises(ValueError, match=f"position {place}: pointer to image token {own}, but its sequence"):
        model(**inputs(replace(batch, input_ids=ids)), labels=batch.labels)


@pytest.mark.parametrize("lengths", [(3,), (1, 2, 3), ()])
def test_segments_that_do_not_fit_the_row_are_refused(lengths: tuple[int, ...]) -> None:
    model = build("qwen2_5_vl")
    batch = replace(packed_batch("qwen2_5_vl"), segment_lengths=lengths)
    with pytest.raises(ValueError, match="do not fit input_ids"):
        model(**inputs(batch), labels=batch.labels)


@pytest.mark.parametrize("family", list_backbones())
def test_a_batch_without_an_image_gives_every_parameter_a_gradient(family: str) -> None:
    """Ranks with and without images then agree on what they reduce; the towers' gradients are zero."""
    model = build(family).train()
    found = gradients(model, [packed_batch(family, (0, 0))])
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    of_towers = [
        value
        for part in ("vision", "projector")
        for path in model.family.parts[part]
        for name, value in found.items()
        if name.startswith(f"backbone.{path}.")
    ]
    assert of_towers
    assert all((value == 0).all() for value in of_towers)
    assert any((value != 0).any() for value in found.values())


def test_segments_with_a_mask_and_in_generation_are_refused() -> None:
    model = build("qwen2_5_vl")
    batch = packed_batch("qwen2_5_vl")
    with pytest.raises(ValueError, match="segment_lengths or attention_mask, not both"):
        model(**inputs(batch), attention_mask=batch.attention_mask, labels=batch.labels)
    with pytest.raises(ValueError, match="generate takes one example per row"):
        model.generate(**inputs(batch))
