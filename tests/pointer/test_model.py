"""The plug-in on every family: nothing changes without pointers, and everything is there with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from v1lit.backbones import list_backbones
from v1lit.labels import IGNORE, first_pointers
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.joint_loss import LossOptions, Pointers, pointer_cross_entropy
from v1lit.pointer.model import PointAndCopyModel
from v1lit.testing.models import build, inputs, training_batch

pytestmark = pytest.mark.dependencies

OPTIONS = {
    "default": PointerConfig(),
    "tied": PointerConfig(tie_heads=True),
    "narrow": PointerConfig(width=8),
    "embedding keys, normalized": PointerConfig(key_source="embedding", normalize=True),
    "gate": PointerConfig(gate=True),
    "identity": PointerConfig(identity_init=True),
    "separate": PointerConfig(loss="separate", z_weight=0.0),
    "smoothed, top-k": PointerConfig(label_smoothing=0.1, z_top_k=10),
    "first pointers count more": PointerConfig(first_pointer_weight=4.0),
}


@pytest.mark.parametrize("family", list_backbones())
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_loss_is_the_reference_on_the_logits(family: str, options: PointerConfig) -> None:
    model = build(family, options)
    batch = training_batch(family)
    out = model(**inputs(batch), labels=batch.labels)
    with torch.no_grad():
        logits = model(**inputs(batch)).logits
    supervised = batch.labels[:, 1:] != IGNORE
    start = model.config.pointer_start
    # Logits given as they are: identity matrices turn states into vocabulary logits, queries into pointers'.
    flat = logits[:, :-1][supervised]
    counts = (batch.input_ids == model.config.image_token_id).sum(dim=1).tolist()
    keys = [torch.eye(flat.shape[1] - start)[:count] for count in counts]
    given = Pointers(
        flat[:, start:], torch.cat(keys), tuple(supervised.sum(dim=1).tolist()), tuple(counts), scale=1.0
    )
    first = first_pointers(batch.labels, start)[:, 1:][supervised]
    expected = pointer_cross_entropy(
        flat[:, :start],
        torch.eye(start),
        batch.labels[:, 1:][supervised],
        start,
        given,
        LossOptions(
            label_smoothing=options.label_smoothing,
            z_weight=options.z_weight,
            z_top_k=options.z_top_k,
            separate=options.loss == "separate",
            implementation="reference",
        ),
        weights=torch.where(first, options.first_pointer_weight, 1.0),
    )
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-4, atol=1e-5)
    assert torch.equal(out.terms.predictions, flat.argmax(dim=-1))
    assert torch.equal(out.targets, batch.labels[:, 1:][supervised])


@pytest.mark.parametrize("family", list_backbones())
@pytest.mark.parametrize(
    "options", [PointerConfig(), PointerConfig(tie_heads=True, width=8)], ids=["default", "tied"]
)
def test_saved_and_opened_again_it_is_the_same(family: str, options: PointerConfig, tmp_path: Path) -> None:
    model = build(family, options)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again, info = PointAndCopyModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    batch = training_batch(family)
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs(batch)).logits, model(**inputs(batch)).logits)
    assert again.config.to_dict()["pointer"] == model.config.to_dict()["pointer"]


def test_weights_that_are_missing_or_unexpected_are_refused_by_name(tmp_path: Path) -> None:
    model = build("qwen2_5_vl")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["pointer_head.extra.weight"] = weights.pop("pointer_head.key.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"missing \(1\): pointer_head.key.weight; unexpected \(1\): pointer_head.extra"
    ):
        PointAndCopyModel.from_pretrained(tmp_path)


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model = build("qwen2_5_vl", tiny={"tie_word_embeddings": True})
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert not any("lm_head" in name for name in file.keys())  # noqa: SIM118  not a dict
    again = PointAndCopyModel.from_pretrained(tmp_path)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    batch = training_batch("qwen2_5_vl")
    with torch.no_grad():
        assert torch.equal(again(**inputs(batch)).logits, model(**inputs(batch)).logits)


def test_a_gate_changes_nothing_at_the_start() -> None:
    torch.manual_seed(0)
    plain, gated = build("qwen2_5_vl"), build("qwen2_5_vl", PointerConfig(gate=True))
    gated.load_state_dict(plain.state_dict(), strict=False)
    torch.nn.init.zeros_(gated.pointer_head.gate.weight)
    gated.get_output_embeddings().weight.data.mul_(2.0)
    batch = training_batch("qwen2_5_vl")
    with torch.no_grad():
        ours, theirs = (m(**inputs(batch)).logits[..., : plain.config.pointer_start] for m in (gated, plain))
    torch.testing.assert_close(ours, theirs)


def test_build_doubles_the_head_for_a_gate() -> None:
    torch.manual_seed(0)
    plain = PointAndCopyModel.build(_tiny())
    torch.manual_seed(0)
    gated = PointAndCopyModel.build(_tiny(), PointerConfig(gate=True))
    assert torch.equal(gated.get_output_embeddings().weight, 2 * plain.get_output_embeddings().weight)
    with pytest.raises(ValueError, match="tie"):
        PointAndCopyModel.build(_tiny(tiny={"tie_word_embeddings": True}), PointerConfig(gate=True))


def test_identity_start() -> None:
    model = PointAndCopyModel.build(_tiny(), PointerConfig(identity_init=True))
    hidden = model.config.get_text_config().hidden_size
    assert torch.allclose(model.pointer_head.query.weight, torch.eye(hidden) / hidden**0.5)


@pytest.mark.parametrize("part", ["vision", "projector", "language", "pointer"])
def test_a_frozen_part_does_not_learn(part: str) -> None:
    model = PointAndCopyModel.build(_tiny(freeze=[part]))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen
    marks = {
        "vision": "visual",
        "projector": "merger",
        "language": "language_model",
        "pointer": "pointer_head",
    }
    assert any(marks[part] in name for name in frozen)
    assert all(marks[part] in name or (part == "language" and "lm_head" in name) for name in frozen)


@pytest.mark.parametrize("family", list_backbones())
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    batch = training_batch(family)
    found = []
    for parts in ([], ["language"], ["language", "vision"]):
        model = build(family, gradient_checkpointing=parts).train()
        model(**inputs(batch), labels=batch.labels).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(gradient, other[name], msg=name)


def test_a_pointer_beyond_the_image_is_refused() -> None:
    model = build("llava")
    batch = training_batch("llava", (1,))
    tokens = int((batch.input_ids == model.config.image_token_id).sum())
    ids = batch.input_ids.clone()
    ids[0, -1] = model.config.pointer_start + tokens
    with pytest.raises(ValueError, match=f"pointer to image token {tokens}, but its sequence has {tokens}"):
        model(ids, batch.attention_mask, **batch.image_inputs)


def test_features_that_do_not_fit_the_placeholders_are_refused() -> None:
    model = build("llava")
    batch = training_batch("llava", (1,))
    ids = batch.input_ids.clone()
    ids[0, (ids[0] == model.config.image_token_id).nonzero()[0]] = 7
    with pytest.raises(ValueError, match=r"gave \d+ image tokens, but the text has \d+ placeholders"):
        model(ids, batch.attention_mask, **batch.image_inputs)


def test_unknown_image_inputs_are_refused() -> None:
    batch = training_batch("llava", (1,))
    with pytest.raises(ValueError, match="llava takes the image inputs pixel_values; not image_grid_thw"):
        build("llava")(**inputs(batch), image_grid_thw=torch.ones(1, 3))


@pytest.mark.parametrize(
    ("option", "value"),
    [("width", 0), ("label_smoothing", 1.0), ("z_weight", -1.0), ("z_top_k", 0), ("loss_chunk", 0)],
)
def test_options_out_of_range_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"pointer.{option} is {value}"):
        replace(PointerConfig(), **{option: value})


def _tiny(**options: object):
    from v1lit.backbones.config import BackboneConfig

    return BackboneConfig("qwen2_5_vl", **options)  # type: ignore[arg-type]
