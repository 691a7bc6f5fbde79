"""What is checked of a family's model: parity with the stock class, pointers, batches, generation, files."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from v1lit.backbones.classes import named_class
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.load import load_backbone, part_parameters
from v1lit.backbones.processor import load_processor
from v1lit.backbones.registry import get_backbone
from v1lit.data.encode.batch import collate, flatten
from v1lit.testing.models import (
    build,
    generate,
    inputs,
    mixed,
    noise,
    prefers_pointing,
    processor,
    training_batch,
    training_examples,
)
from v1lit.testing.parity import assert_refused, stock_logits
from v1lit.training.flops import ModelFlops, WorkSum
from v1lit.training.self_test import assert_parity

MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "do_sample": False},
    "beams, all returned": {"num_beams": 3, "num_return_sequences": 3, "do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 20},
    "penalty": {"do_sample": False, "repetition_penalty": 1.3},
}
"""Ways to generate."""
WORK_TOLERANCE = 0.01
"""Largest relative difference of the operations that a family states and those that torch counts."""


def tiny(name: str) -> PreTrainedModel:
    """The family's tiny transformers model, as loaded."""
    torch.manual_seed(0)
    return load_backbone(BackboneConfig(name)).eval()


def parts(name: str) -> str:
    """The parts are the whole model and disjoint, and the state dict is that of the stock class."""
    backbone, model = get_backbone(name), tiny(name)
    owned = {part: set(part_parameters(model, backbone, part)) for part in backbone.parts}
    assert {*owned} == {"vision", "projector", "language"}, f"the parts are {sorted(owned)}"
    for part, names in owned.items():
        assert names, f"the part {part} has no parameter"
    everything = {parameter for parameter, _ in model.named_parameters()}
    left = sorted(everything - set().union(*owned.values()))
    assert not left, f"{len(left)} parameters belong to no part, such as {left[0]}"
    assert model.config.model_type == backbone.model_type, f"model_type is {model.config.model_type!r}"
    with torch.device("meta"):
        stock = named_class(backbone.model_class)(model.config)
    changed = sorted(set(stock.state_dict()) ^ set(model.state_dict()))
    assert not changed, f"prepare changes the state dict: {changed[0]}"
    again = tiny(name).state_dict()
    differing = [key for key, value in model.state_dict().items() if not torch.equal(value, again[key])]
    assert not differing, f"one seed makes two models: {differing[0]}"
    return f"{len(everything)} parameters of {len(owned)} parts, and of the stock class"


def stock(name: str) -> tuple[str, float]:
    """Without pointers the vocabulary's logits are those of the stock class, padded on either side."""
    model, image = build(name), processor(name).image_token_id
    vocabulary, worst = model.config.pointer_start, 0.0
    for side in ("right", "left"):
        batch = collate(mixed(name, (1, 0, 2)), processor(name).pad_token_id, side=side)
        real = batch.attention_mask.bool()
        with torch.no_grad():
            ours = model(**inputs(batch)).logits[real][:, :vocabulary]
        theirs = stock_logits(model.backbone, image_token_id=image, **inputs(batch))[real]
        worst = max(worst, assert_parity(f"logits, padded on the {side},", ours, theirs))
    return "logits with images and of the stock class", worst


def causal(name: str) -> tuple[str, float]:
    """No token sees a later one: a decoder whose attention got lost attends in both directions."""
    model, batch = build(name), training_batch(name, (1,))
    with torch.no_grad():
        whole = model(**inputs(batch)).logits[:, :-3]
        cut = model(batch.input_ids[:, :-3], batch.attention_mask[:, :-3], **batch.image_inputs).logits
    return "logits with and without later tokens", assert_parity("logits", whole, cut)


def pointers(name: str) -> tuple[str, float]:
    """A pointer copies the input embedding of its image token, and gradients flow through copy and key."""
    model, (example,) = build(name), training_examples(name, (1,))
    batch, start = collate([example], 0), model.config.pointer_start
    embeds = torch.randn(
        1, len(example.patch_maps[0]), model.width, generator=torch.Generator().manual_seed(0)
    )
    embeds[:, 1] = embeds[:, 0]
    at_pointer = batch.input_ids >= start
    text = batch.input_ids.masked_fill(at_pointer, 0)
    positions = model.family.positions(model.backbone, text, batch.attention_mask, **batch.image_inputs)
    with torch.no_grad():
        first, same, other = (
            model(
                batch.input_ids.masked_fill(at_pointer, start + token),
                batch.attention_mask,
                position_ids=positions,
                image_embeds=embeds,
            ).logits
            for token in range(3)
        )
    difference = assert_parity("logits behind pointers to equal image tokens", same, first)
    assert not torch.allclose(first, other, atol=1e-3), "a pointer's image token makes no difference"
    embeds.requires_grad_()
    model(**inputs(batch), image_embeds=embeds, labels=batch.labels).loss.backward()
    assert embeds.grad is not None, "no gradient flows through copies and keys"
    assert embeds.grad.any(), "no gradient flows through copies and keys"
    for path, parameter in model.pointer_head.named_parameters():
        assert parameter.grad is not None, f"pointer_head.{path} gets no gradient"
    return "logits behind pointers to equal image tokens; gradients through copies and keys", difference


def gradients(name: str) -> str:
    """Every weight that learns gets a gradient, from a batch with images and from one without."""
    for images in ((1, 0, 2), (0, 0)):
        model, batch = build(name).train(), training_batch(name, images)
        model(**inputs(batch), labels=batch.labels).loss.backward()
        learning = 0
        for path, parameter in model.named_parameters():
            learning += parameter.requires_grad
            assert parameter.grad is not None or not parameter.requires_grad, (
                f"{path} gets no gradient from a batch with {sum(images)} images"
            )
            assert parameter.grad is None or parameter.grad.isfinite().all(), f"{path}: not finite"
    return f"gradients of {learning} weights, with images and without"


def batches(name: str) -> tuple[str, float]:
    """Rows with several images, one and none are in a batch as each alone, also when they generate."""
    model, pad = prefers_pointing(name), processor(name).pad_token_id
    examples, worst = training_examples(name, (1, 0, 2)), 0.0
    with torch.no_grad():
        together = model(**inputs(collate(examples, pad))).logits
        for row, example in enumerate(examples):
            alone = model(**inputs(collate([example], pad))).logits[0]
            tokens, classes = alone.shape
            worst = max(worst, assert_parity(f"logits of row {row}", together[row, :tokens, :classes], alone))
            beyond = together[row, :tokens, classes:]
            assert (beyond == torch.finfo(beyond.dtype).min).all(), f"row {row} may point at others' images"
    prompts = mixed(name, (1, 0, 2))
    for mode in ("greedy", "beams"):
        batch = generate(model, collate(prompts, pad, side="left"), **MODES[mode])
        for row, prompt in enumerate(prompts):
            single = generate(model, collate([prompt], pad), **MODES[mode])
            assert torch.equal(batch[row], single[0]), f"{mode}: row {row} generates something else alone"
    return "logits and generations of rows in a batch and alone", worst


def generation(name: str) -> str:
    """Generation with the cache is generation without, in every mode, and points."""
    model = prefers_pointing(name)
    batch = collate(mixed(name), processor(name).pad_token_id, side="left")
    for mode, options in MODES.items():
        kept, whole = (generate(model, batch, use_cache=cache, **options) for cache in (True, False))
        assert torch.equal(kept, whole), f"{mode}: other tokens with the cache than without"
        assert (kept >= model.config.pointer_start).any(), f"{mode}: the model does not point"
    return f"tokens generated with cache and without: {', '.join(MODES)}"


def checkpoint(name: str) -> str:
    """A checkpoint in the transformers layout opens as the same model, and other kinds are refused."""
    model, of = tiny(name), processor(name)
    with tempfile.TemporaryDirectory(prefix="v1lit-testing-") as folder:
        model.save_pretrained(folder)
        of.save_pretrained(folder)
        config = BackboneConfig(name, weights=folder)
        again, reopened = load_backbone(config).state_dict(), load_processor(config)
        for key, value in model.state_dict().items():
            assert torch.equal(value, again[key]), f"{key} is another after saving and loading"
        assert reopened.image_options == of.image_options, f"image options become {reopened.image_options}"
        assert reopened.pointer_start == of.pointer_start, "pointers begin elsewhere"
        image = noise((100, 50))
        (ours, maps), (theirs, known) = reopened.images([image]), of.images([image])
        assert maps == known, "patch maps are others after saving and loading"
        for key, value in theirs.items():
            assert torch.equal(ours[key], value), f"{key} is another after saving and loading"
        path = Path(folder) / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "of_another_kind"}))
        assert_refused(lambda: load_backbone(config), "of_another_kind", "a foreign model_type")
    return f"{len(again)} tensors, image options and patch maps, saved and loaded"


def work(name: str) -> tuple[str, float | None]:
    """What the images cost, as the family states it, is what torch counts."""
    model = build(name).train()
    batch = flatten(training_examples(name), processor(name).pointer_start)
    try:
        flops = ModelFlops(model)
    except ValueError:
        return "nothing: vision_work is not stated, so train/mfu is not logged", None
    total = WorkSum(model)
    total.add(batch)
    parts = flops.parts(total.sum())
    stated = parts["vision"].total + parts["projector"].total
    # As matrix products, which every version of torch counts: not every one knows the CPU's fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.family.encode_images(model.backbone, **batch.image_inputs).sum().backward()
    counted = counter.get_total_flops()
    assert math.isclose(counted, stated, rel_tol=WORK_TOLERANCE), (
        f"vision_work makes {stated:.4g} operations of the batch's images, torch counts {counted:.4g}"
    )
    return "operations of the batch's images, stated and counted", abs(counted - stated) / counted
