"""A copied patch carries what an image token does: its embedding, and what enters further decoder layers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.stock_folders import edit_json, stock_folder
from torch import Tensor

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.deep_decoder import DeepDecoder
from v1lit.backbones.load import load_backbone
from v1lit.backbones.registry import get_backbone
from v1lit.data.encode.batch import collate
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.testing.models import inputs, mixed, prefers_pointing, processor, training_batch
from v1lit.testing.parity import stock_logits

FAMILY = "qwen3_vl"
HIDDEN = 64


def model_of(strategy: str = "point_and_copy", control: Any = "none", **options: Any) -> PointAndCopyModel:
    torch.manual_seed(0)
    revisit = RevisitConfig(strategy, options, control)
    model = PointAndCopyModel.build(BackboneConfig(FAMILY), revisit=revisit)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (parameter.ndim >= 2 and "norm" not in name) or name.startswith("look."):
                parameter.mul_(4.0)
    return model.eval()


@torch.no_grad()
def decoder_input(model: PointAndCopyModel, batch: Any) -> Tensor:
    """`[tokens, width]`: what the decoder was called with, for one row."""
    seen: list[Tensor] = []
    decoder = model.backbone.get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs(batch))
    hook.remove()
    return seen[0][0]


def places(model: PointAndCopyModel, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of image tokens and of pointers, and the image tokens that these point at."""
    ids, start = batch.input_ids[0], model.config.pointer_start
    pointers = (ids >= start).nonzero()[:, 0]
    return (ids == model.config.image_token_id).nonzero()[:, 0], pointers, ids[pointers] - start


def test_an_image_token_of_its_tiny_version_is_three_vectors_and_of_others_one() -> None:
    widths = [PointAndCopyModel.build(BackboneConfig(name)).width for name in (FAMILY, "qwen2_5_vl")]
    assert widths == [3 * HIDDEN, HIDDEN]


def test_a_pointer_has_all_that_its_image_token_has_and_text_has_an_embedding_only() -> None:
    model, batch = model_of(), training_batch(FAMILY, (2,))
    rows = decoder_input(model, batch)
    images, pointers, pointed = places(model, batch)
    assert rows.shape[1] == 3 * HIDDEN
    assert torch.equal(rows[pointers], rows[images][pointed])
    assert rows[pointers][:, HIDDEN:].any(dim=1).all()
    text = torch.ones(len(rows), dtype=torch.bool)
    text[images] = text[pointers] = False
    assert not rows[text][:, HIDDEN:].any()
    assert rows[text][:, :HIDDEN].any(dim=1).all()


def test_a_learned_input_in_place_of_a_copy_has_no_deep_features() -> None:
    model, batch = model_of("point_only"), training_batch(FAMILY, (1,))
    rows, (_, pointers, _) = decoder_input(model, batch), places(model, batch)
    assert model.look is not None
    assert torch.equal(rows[pointers][:, :HIDDEN], model.look.weight.expand(len(pointers), -1))
    assert not rows[pointers][:, HIDDEN:].any()


@pytest.mark.parametrize("control", ["random_region", "other_image", "shuffled"])
def test_a_control_copies_another_patch_with_its_own_deep_features(control: str) -> None:
    model, batch = model_of(control=control), training_batch(FAMILY, (1,))
    rows, (images, pointers, pointed) = decoder_input(model, batch), places(model, batch)
    for row, right in zip(rows[pointers], pointed, strict=True):
        (same,) = (rows[images] == row).all(dim=1).nonzero()
        assert int(same) != int(right) or control == "shuffled"


def test_a_blank_copy_has_the_deep_features_of_a_blank_image() -> None:
    model, batch = model_of(control="blank_copy"), training_batch(FAMILY, (1,))
    rows, (_, pointers, _) = decoder_input(model, batch), places(model, batch)
    blank = get_backbone(FAMILY).encode_images(model.backbone, **model.family.blank_image(model.backbone))
    torch.testing.assert_close(rows[pointers], blank.mean(dim=0).expand(len(pointers), -1))


def test_noise_has_the_norm_of_each_vector_that_it_stands_for() -> None:
    model, batch = model_of(control="noise_copy"), training_batch(FAMILY, (1,))
    rows, (images, pointers, pointed) = decoder_input(model, batch), places(model, batch)
    noise, right = (x.unflatten(1, (3, HIDDEN)) for x in (rows[pointers], rows[images][pointed]))
    torch.testing.assert_close(noise.norm(dim=2), right.norm(dim=2))
    assert (torch.cosine_similarity(noise, right, dim=2).abs() < 0.6).all()


@torch.no_grad()
def test_every_deep_feature_of_a_copy_changes_what_follows_in_training_and_decoding() -> None:
    model, batch = model_of(), training_batch(FAMILY, (1,))
    _, pointers, _ = places(model, batch)
    first = int(pointers[0])
    positions = model._positions(model._without_pointers(batch.input_ids), None, None, batch.image_inputs)
    out = model(batch.input_ids[:, :first], **batch.image_inputs, use_cache=True)
    assert out.pointer_memory.values.shape[2] == 3 * HIDDEN
    results = []
    for layer in (None, 0, 1, 2):
        memory = copy.copy(out.pointer_memory)
        memory.values = memory.values.clone()
        if layer is not None:
            memory.values[..., layer * HIDDEN : (layer + 1) * HIDDEN] = 0.0
        step = {"position_ids": positions[..., first : first + 1], "use_cache": True}
        cache = copy.deepcopy(out.cache)
        token = batch.input_ids[:, first : first + 1]
        results.append(model(token, cache=cache, pointer_memory=memory, **step).logits[0, -1])
    right = model(batch.input_ids[:, : first + 1], **batch.image_inputs).logits[0, -1]
    torch.testing.assert_close(results[0], right, atol=2e-4, rtol=1e-4)
    assert all(not torch.allclose(result, right, atol=1e-2) for result in results[1:])


def test_gradients_of_copies_reach_the_deep_mergers_unless_they_are_detached() -> None:
    batch, gradients = training_batch(FAMILY, (1,)), []
    for detach in (False, True):
        model = model_of(detach=detach).train()
        model(**inputs(batch), labels=batch.labels).loss.backward()
        merger = model.backbone.model.visual.deepstack_merger_list[1]
        gradients.append(merger.linear_fc2.weight.grad)
    assert not torch.allclose(*gradients)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_head_off_model_is_the_class_of_transformers_that_nothing_of_ours_has_touched(side: str) -> None:
    model = prefers_pointing(FAMILY)
    stock = transformers.Qwen3VLForConditionalGeneration(copy.deepcopy(model.backbone.config)).eval()
    stock.load_state_dict(model.backbone.state_dict())
    assert type(stock.get_decoder()) is not type(model.backbone.get_decoder()) is DeepDecoder
    batch = collate(mixed(FAMILY), processor(FAMILY).pad_token_id, side=side)
    real = batch.attention_mask.bool()
    image = model.config.image_token_id
    theirs = stock_logits(stock, image_token_id=image, **inputs(batch))[real]
    ours = model(**inputs(batch)).logits[real][:, : model.config.pointer_start]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    if side == "right":
        return
    is_image, start = batch.input_ids == image, model.config.pointer_start
    limits = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    no_pointers = [*range(start, start + int(is_image.sum(1).max()))]
    ours = model.generate(**inputs(batch), **limits, suppress_tokens=no_pointers)
    types = {"mm_token_type_ids": is_image.int(), "suppress_tokens": [image]}
    assert torch.equal(ours, stock.generate(**inputs(batch), **limits, **types))


def test_a_checkpoint_as_it_was_published_opens(tmp_path: Path) -> None:
    folder = stock_folder(tmp_path, FAMILY)

    def as_published(config: dict[str, Any]) -> None:
        text = config["text_config"]
        rope = text.pop("rope_parameters")
        text["rope_theta"] = rope.pop("rope_theta")
        text["rope_scaling"] = rope
        config["vision_config"]["model_type"] = FAMILY
        config["transformers_version"] = "4.57.0.dev0"

    edit_json(folder / "config.json", as_published)
    model = load_backbone(BackboneConfig(FAMILY, weights=str(folder)))
    torch.manual_seed(0)
    tiny = load_backbone(BackboneConfig(FAMILY))
    assert model.config.text_config.rope_parameters["rope_theta"] == 5e6
    assert model.config.text_config.rope_parameters["mrope_section"] == [4, 2, 2]
    assert all(torch.equal(value, tiny.state_dict()[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path / "again")
    assert "base_model_tp_plan" not in json.loads((tmp_path / "again" / "config.json").read_text())


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ({"deep_layers": [0, 2]}, "numbers of vision layers, from 0 to 1, in order"),
        ({"deep_layers": [1, 0]}, "in order"),
        ({"layers": 1}, "each enters a decoder layer, and there are layers=1"),
    ],
)
def test_deep_layers_that_do_not_exist_are_refused(sizes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        load_backbone(BackboneConfig(FAMILY, tiny=sizes))


def test_features_for_more_layers_than_the_decoder_has_are_refused() -> None:
    family, config = get_backbone(FAMILY), load_backbone(BackboneConfig(FAMILY)).config
    options = processor(FAMILY).image_options
    family.check_fit(options, config)
    config.vision_config.deepstack_visual_indexes = [0, 1, 1]
    with pytest.raises(ValueError, match=r"names 3 layers of the vision tower.*there are 2"):
        family.check_fit(options, config)
