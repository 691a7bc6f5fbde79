"""v1lit gives what the published mechanism gives, with nothing beside the repository.

`make_small_goldens.py` wrote what `mechanism.py` computes for the weights of `drawn.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import FIRST_POINTER, VARIANTS, config_of, inputs_of, prompt_length, uniform, weights_of
from make_small_goldens import FILE, NEW_TOKENS, SIDE, all_goldens, looked_at, looked_at_gradient
from mechanism import rows_of
from safetensors.torch import load_file, save_file

from v1lit.backbones.registry import get_backbone
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.published import save_published

pytestmark = pytest.mark.dependencies

GOLDENS: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
PARTS = {"joint": "gen_loss", "text": "gen_loss", "pointer": "copy_loss", "z": "z_loss"}


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the published layout."""
    folder = tmp_path_factory.mktemp(variant)
    (folder / "config.json").write_text(json.dumps(config_of(variant)), encoding="utf-8")
    save_file(weights_of(variant), folder / "model.safetensors")
    return folder


def assert_close(ours: Any, golden: Any, what: str, floor: float = 0.0) -> None:
    """Equal within 1e-4 of the largest number of the golden, and `floor`."""
    ours, golden = np.asarray(ours, dtype=np.float64), np.asarray(golden, dtype=np.float64)
    assert ours.shape == golden.shape, what
    assert np.abs(ours - golden).max() <= max(1e-4 * np.abs(golden).max(), floor), what


def assert_same_looks(ours: list[dict[str, Any]], golden: list[dict[str, Any]], what: str) -> None:
    for mine, theirs in zip(ours, golden, strict=True):
        assert (mine["at"], mine["best"]) == (theirs["at"], theirs["best"]), what
        for key in ("logsumexp", "text", "pointers"):
            assert_close(mine[key], theirs[key], f"{what} {key} at {mine['at']}")


def test_logits_are_the_golden_ones(variant: str, folder: Path) -> None:
    inputs = inputs_of(variant)
    images = [len(row.pixels) // 4 for row in rows_of(inputs)]
    with torch.no_grad():
        logits = PointAndCopyModel.from_published(folder)(
            **{name: value for name, value in inputs.items() if name != "labels"}
        ).logits
    for row, (length, count) in enumerate(zip(inputs["attention_mask"].sum(dim=1), images, strict=True)):
        ours = looked_at(logits[row, :length, : FIRST_POINTER + count])
        assert_same_looks(ours, GOLDENS["variants"][variant]["logits"][row], f"row {row}")
        assert (logits[row, :length, FIRST_POINTER + count :] < -1e38).all()


def test_losses_and_every_gradient_are_the_golden_ones(variant: str, folder: Path, tmp_path: Path) -> None:
    golden = GOLDENS["variants"][variant]
    model = PointAndCopyModel.from_published(folder).train()
    out = model(**inputs_of(variant))
    assert_close(out.loss.item(), golden["losses"]["loss"], "loss")
    parts = {PARTS[name]: value.item() for name, value in out.losses.items()}
    for name in golden["losses"].keys() - {"loss"}:
        assert_close(parts[name], golden["losses"][name], name)
    out.loss.backward()
    ours = gradients_by_published_name(model, tmp_path / "gradients")
    assert sorted(ours) == sorted(golden["gradients"])
    largest = max(look[0] for look in golden["gradients"].values())
    for name, gradient in ours.items():
        assert_close(looked_at_gradient(gradient), golden["gradients"][name], name, floor=1e-6 * largest)


def gradients_by_published_name(model: PointAndCopyModel, folder: Path) -> dict[str, torch.Tensor]:
    """Written as if they were weights, since the writer knows the names."""
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    save_published(model, folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_continuations_are_the_golden_ones(variant: str, folder: Path, use_cache: bool) -> None:
    model = PointAndCopyModel.from_published(folder)
    for row, golden in zip(
        rows_of(inputs_of(variant)), GOLDENS["variants"][variant]["continued"], strict=True
    ):
        prompt = row.ids[None, : prompt_length(row.ids.tolist())]
        out = model.generate(
            prompt,
            pixel_values=row.pixels,
            image_grid_thw=torch.tensor([row.grid]),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=-1,
        )
        assert out[0, prompt.shape[1] :].tolist() == golden


def test_the_goldens_point_and_write() -> None:
    for variant in GOLDENS["variants"].values():
        tokens = [token for row in variant["continued"] for token in row]
        assert any(token >= FIRST_POINTER for token in tokens)
        assert any(token < FIRST_POINTER for token in tokens)


@pytest.mark.parametrize("case", GOLDENS["regions"], ids=lambda case: "{}x{}".format(*case["size"]))
def test_a_box_has_the_golden_tokens(case: dict[str, Any]) -> None:
    family = get_backbone("qwen2_5_vl")
    patches = family.patch_map(tuple(case["size"]), min_pixels=56 * 56, max_pixels=448 * 448)
    columns, rows = (length // SIDE for length in case["resized"])
    assert len(patches) == rows * columns
    (top, left), (bottom, right) = (divmod(case[corner], columns) for corner in ("first", "last"))
    expected = [row * columns + column for row in range(top, bottom + 1) for column in range(left, right + 1)]
    assert list(patches.tokens(tuple(case["box"]))) == expected


def test_the_committed_file_is_what_its_script_writes() -> None:
    again = all_goldens()
    assert [
        dict(case, box=list(case["box"]), resized=list(case["resized"])) for case in again["regions"]
    ] == (GOLDENS["regions"])
    assert list(again["variants"]) == list(GOLDENS["variants"])
    for name, golden in GOLDENS["variants"].items():
        ours = again["variants"][name]
        assert ours["continued"] == golden["continued"]
        assert ours["losses"].keys() == golden["losses"].keys()
        for part, value in golden["losses"].items():
            assert_close(ours["losses"][part], value, f"{name} {part}")
        for row, looks in enumerate(golden["logits"]):
            assert_same_looks(ours["logits"][row], looks, f"{name} row {row}")
        largest = max(look[0] for look in golden["gradients"].values())
        for weight, look in golden["gradients"].items():
            assert_close(ours["gradients"][weight], look, f"{name} {weight}", floor=1e-6 * largest)
    assert FILE.stat().st_size < 50_000


def test_drawn_numbers_are_fixed_whatever_numpy_is_installed() -> None:
    assert (uniform("a name", (2, 2)) * 2**23).long().tolist() == [[618822, 4127949], [-3822510, 5588152]]
