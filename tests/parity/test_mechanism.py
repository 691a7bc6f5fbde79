"""The readable mechanism, from which the small goldens come, is the published one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mechanism import Mechanism, Row, rows_of
from published_regions import resized, tokens_of_box, tokens_of_ellipse
from safetensors.torch import load_file

pytestmark = pytest.mark.dependencies

VARIANTS = ["published", "long_rows", "tied_gate", "embed_keys_norm", "separate_small"]


@pytest.fixture(params=VARIANTS)
def golden(request: pytest.FixtureRequest, shared: Path) -> Path:
    return shared / "golden" / "v1_reference" / request.param


def opened(folder: Path) -> tuple[Mechanism, list[Row], dict[str, torch.Tensor]]:
    model = Mechanism(json.loads((folder / "config.json").read_text()))
    model.load(load_file(folder / "model.safetensors"))
    return (
        model,
        rows_of(load_file(folder / "inputs.safetensors")),
        load_file(folder / "expected.safetensors"),
    )


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() < 1e-4 * theirs.abs().max())


def test_it_computes_the_published_logits_losses_and_gradients(golden: Path) -> None:
    model, rows, expected = opened(golden)
    for row, theirs in zip(rows, expected["logits"], strict=True):
        ours = model.logits(row).detach()
        assert close(ours, theirs[: ours.shape[0], : ours.shape[1]])
    losses = model.losses(rows)
    assert set(losses) == {name for name in expected if name.endswith("loss")}
    for name, value in losses.items():
        assert close(value.detach(), expected[name][0]), name
    losses["loss"].backward()
    gradients = {name[len("grad.") :]: value for name, value in expected.items() if name.startswith("grad.")}
    largest = max(float(value.abs().max()) for value in gradients.values())
    weights = model.published_parameters()
    for name, theirs in gradients.items():
        error = (weights[name].grad - theirs).abs().max()
        # With separate losses a bias of the keys shifts all pointer logits alike: its gradient is noise.
        assert error < max(1e-3 * float(theirs.abs().max()), 1e-7 * largest), name


def test_it_goes_on_as_the_published_one_does(golden: Path) -> None:
    model, rows, expected = opened(golden)
    for number, row in enumerate(rows):
        images = int((row.ids == model.config["image_token_id"]).sum())
        prompt = row.ids[: 1 + 4 + 1 + images + 1 + 6]
        ours, _ = model.continued(Row(prompt, prompt, row.pixels, row.grid), 24)
        assert ours == expected[f"generated.{number}"].tolist()


def test_its_regions_have_the_published_tokens(shared: Path) -> None:
    cases = json.loads((shared / "golden" / "v1_reference" / "regions.json").read_text())
    assert len(cases) == 160
    for case in cases:
        size, side = tuple(case["image_size"]), case["patch_size"] * case["merge_size"]
        new = resized(size, side, case["min_pixels"], case["max_pixels"])
        assert list(new) == case["resized_size"]
        assert tokens_of_box(tuple(case["box"]), size, new, side) == case["pointer_ids"]
        if "ellipse" in case:
            assert tokens_of_ellipse(tuple(case["ellipse"]), size, new, side) == case["mask_pointer_ids"]
