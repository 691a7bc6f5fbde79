"""Where models come from, and on which devices and in how many bits they are opened."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.asked import predictor, save_model

import v1lit
from v1lit.backbones.weight_files import WeightsUnavailable
from v1lit.errors import OptionError
from v1lit.inference import loading
from v1lit.testing.models import noise

pytestmark = pytest.mark.dependencies

PICTURE = noise((112, 84))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("saved") / "model")


def test_an_opened_model_says_the_same_and_says_it_in_bfloat16_too(folder: Path) -> None:
    opened = v1lit.load(folder, device="cpu")
    assert opened(PICTURE, "Where?", max_new_tokens=6) == predictor()(PICTURE, "Where?", max_new_tokens=6)
    small = v1lit.load(folder, dtype="bfloat16", device="cpu")
    assert small.model.dtype is torch.bfloat16
    made = small(PICTURE, "Where?", max_new_tokens=6)
    assert made.looks
    assert made.looks[0].probabilities[0] > 0


def test_a_hub_id_is_fetched_and_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def fetch(weights: str) -> Path:
        asked.append(weights)
        return folder

    monkeypatch.setattr(loading, "local_folder", fetch)
    monkeypatch.setattr("v1lit.backbones.hub._reach_hub", lambda weights: None)
    assert v1lit.load("somebody/model", device="cpu")(PICTURE, "Where?", max_new_tokens=1).text
    assert asked == ["somebody/model"]


def test_what_is_neither_folder_nor_hub_id_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(weights: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr("v1lit.backbones.hub._reach_hub", nowhere)
    with pytest.raises(WeightsUnavailable, match=r"runs/x: the hub cannot be reached.*\n.*runs/NAME/model"):
        v1lit.load("runs/x")


def test_devices_and_bits_that_are_not_there_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match="bits is 4; that needs bitsandbytes: pip install bitsandbytes"):
        v1lit.load(folder, bits=4)
    with pytest.raises(OptionError, match="bits is 3; weights are packed into 8 or 4 bits"):
        v1lit.load(folder, bits=3)
    with pytest.raises(OptionError, match="device_map is 'auto'; that needs accelerate"):
        v1lit.load(folder, device_map="auto")
    with pytest.raises(OptionError, match="device is 'cpu'; device_map says"):
        v1lit.load(folder, device="cpu", device_map="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert loading.choose_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="PyTorch finds no cuda:1 device on this machine; found: cpu"):
        v1lit.load(folder, device="cuda:1")


@pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed")
def test_weights_on_several_devices_say_the_same(folder: Path, tmp_path: Path) -> None:
    whole = v1lit.load(folder, device="cpu")(PICTURE, "Where?", max_new_tokens=4)
    layers = {
        "backbone.model.language_model.layers.0": "cpu",
        "backbone.model.language_model.layers.1": "disk",
    }
    others = ("backbone.model.visual", "backbone.model.language_model.embed_tokens", "pointer_head")
    norms = (
        "backbone.model.language_model.norm",
        "backbone.model.language_model.rotary_emb",
        "backbone.lm_head",
    )
    placed = {**layers, **dict.fromkeys((*others, *norms), "cpu")}
    parted = v1lit.load(folder, device_map=placed, offload_folder=str(tmp_path))
    assert "disk" in json.dumps(parted.model.hf_device_map)
    assert parted(PICTURE, "Where?", max_new_tokens=4) == whole


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("bits", [8, 4])
def test_packed_weights_answer(folder: Path, bits: int) -> None:
    packed = v1lit.load(folder, device="cpu", bits=bits)
    kinds = {type(module).__name__ for module in packed.model.backbone.model.language_model.modules()}
    assert {8: "Linear8bitLt", 4: "Linear4bit"}[bits] in kinds
    assert not any(
        "Linear" in type(module).__name__ and type(module) is not torch.nn.Linear
        for module in packed.model.backbone.model.visual.modules()
    )
    assert type(packed.model.pointer_head.query) is torch.nn.Linear
    assert packed(PICTURE, "Where?", max_new_tokens=4).looks
