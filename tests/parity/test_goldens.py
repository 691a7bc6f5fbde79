"""Logits, losses, gradients and generations equal the published implementation's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.published import save_published

pytestmark = pytest.mark.dependencies

VARIANTS = ["published", "long_rows", "tied_gate", "embed_keys_norm", "separate_small"]
OUR_NAMES = {
    "_copy_q_head": "pointer_head.query",
    "_copy_k_head": "pointer_head.key",
    "_copy_head": "pointer_head.query",
    "gate": "pointer_head.gate",
    "lm_head": "backbone.lm_head",
    "model.embed_tokens": "backbone.model.language_model.embed_tokens",
}


@pytest.fixture(params=VARIANTS)
def golden(request: pytest.FixtureRequest, shared: Path) -> Path:
    return shared / "golden" / "v1_reference" / request.param


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


def image_inputs(inputs: dict[str, torch.Tensor], row: int | None = None) -> dict[str, torch.Tensor]:
    """Image tensors of the whole batch or of one row; every row has one image."""
    grids, pixels = inputs["image_grid_thw"], inputs["pixel_values"]
    if row is not None:
        patches = grids.prod(dim=1)
        start = int(patches[:row].sum())
        grids, pixels = grids[row : row + 1], pixels[start : start + int(patches[row])]
    return {"pixel_values": pixels, "image_grid_thw": grids}


def test_logits_equal_the_published_ones(golden: Path) -> None:
    model = PointAndCopyModel.from_published(golden)
    inputs, expected = load_file(golden / "inputs.safetensors"), load_file(golden / "expected.safetensors")
    with torch.no_grad():
        ours = model(inputs["input_ids"], inputs["attention_mask"], **image_inputs(inputs)).logits
    kept = inputs["attention_mask"].bool()
    assert ours.shape == expected["logits"].shape
    lowest = torch.finfo(torch.float32).min
    reachable = expected["logits"][kept] > lowest / 2
    assert torch.equal(ours[kept] > lowest / 2, reachable)
    assert relative_error(ours[kept][reachable], expected["logits"][kept][reachable]) < 1e-4


def test_loss_and_gradients_equal_the_published_ones(golden: Path) -> None:
    model = PointAndCopyModel.from_published(golden).train()
    inputs, expected = load_file(golden / "inputs.safetensors"), load_file(golden / "expected.safetensors")
    out = model(
        inputs["input_ids"], inputs["attention_mask"], labels=inputs["labels"], **image_inputs(inputs)
    )
    out.loss.backward()
    assert relative_error(out.loss.detach(), expected["loss"][0]) < 1e-4
    parts = {"joint": "gen_loss", "text": "gen_loss", "pointer": "copy_loss", "z": "z_loss"}
    for name, value in out.losses.items():
        assert relative_error(value.detach(), expected[parts[name]][0]) < 1e-4
    ours = dict(model.named_parameters())
    gradients = {name: value for name, value in expected.items() if name.startswith("grad.")}
    largest = max(value.abs().max().item() for value in gradients.values())
    assert largest > 0
    for name, value in gradients.items():
        module, kind = name.removeprefix("grad.").rsplit(".", 1)
        # With separate losses a bias of the keys shifts all pointer logits alike: its gradient is noise.
        allowed = max(1e-3 * value.abs().max().item(), 1e-7 * largest)
        error = (ours[f"{OUR_NAMES[module]}.{kind}"].grad - value).abs().max().item()
        assert error < allowed, name


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_generations_are_identical(golden: Path, use_cache: bool) -> None:
    model = PointAndCopyModel.from_published(golden)
    inputs, expected = load_file(golden / "inputs.safetensors"), load_file(golden / "expected.safetensors")
    for row in range(3):
        images = int((inputs["input_ids"][row] == model.config.image_token_id).sum())
        prompt = inputs["input_ids"][row : row + 1, : 1 + 4 + 1 + images + 1 + 6]
        out = model.generate(
            prompt,
            **image_inputs(inputs, row),
            max_new_tokens=24,
            min_new_tokens=24,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=-1,
        )
        assert out[0, prompt.shape[1] :].tolist() == expected[f"generated.{row}"].tolist()


def test_written_back_it_is_the_same_checkpoint(golden: Path, tmp_path: Path) -> None:
    model = PointAndCopyModel.from_published(golden)
    save_published(model, tmp_path / "out")
    ours, theirs = load_file(tmp_path / "out" / "model.safetensors"), load_file(golden / "model.safetensors")
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    again = PointAndCopyModel.from_published(tmp_path / "out")
    assert again.config.to_dict() == model.config.to_dict()


def test_written_back_its_config_says_the_same_in_the_published_words(golden: Path, tmp_path: Path) -> None:
    save_published(PointAndCopyModel.from_published(golden), tmp_path / "out")
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", golden))
    assert ours.keys() <= theirs.keys()
    changed = {key for key in ours if ours[key] != theirs[key]}
    assert changed <= {
        "sliding_window",
        "torch_dtype",
        "transformers_version",
        "vision_config",
        "z_loss_top_k",
    }
    assert not theirs["use_sliding_window"]
    assert theirs["z_loss_weight"] == 0 or ours["z_loss_top_k"] == theirs["z_loss_top_k"]
    tower, expected = ours["vision_config"], theirs["vision_config"]
    assert {key for key in tower.keys() & expected.keys() if tower[key] != expected[key]} == {"model_type"}
    words = {key for key in theirs if key.startswith(("copy_", "z_loss", "tie_", "use_", "do_copy", "rope_"))}
    assert words - ours.keys() <= {
        "copy_scaler",
        "copy_token_num",
        "tie_encoder_decoder",
        "use_cfg",
        "use_bfloat16",
    }


def test_a_checkpoint_in_several_files_opens(shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / "v1_reference" / "published"
    tensors = load_file(golden / "model.safetensors")
    names = sorted(tensors)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    places = {name: file for file, part in files.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "config.json").write_text((golden / "config.json").read_text())
    ours, whole = PointAndCopyModel.from_published(tmp_path), PointAndCopyModel.from_published(golden)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), whole.parameters(), strict=True))


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / "v1_reference" / "published"
    tensors = load_file(golden / "model.safetensors")
    tensors["surprise.weight"] = tensors.pop("_copy_q_head.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((golden / "config.json").read_text())
    with pytest.raises(
        ValueError, match=r"missing \['pointer_head.query.bias'\], unexpected \['surprise.weight'\]"
    ):
        PointAndCopyModel.from_published(tmp_path)
    with pytest.raises(ValueError, match=r"no config\.json"):
        PointAndCopyModel.from_published(tmp_path / "nowhere")
