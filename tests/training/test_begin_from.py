"""Training begins from all weights of an exported model, and from no other folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.stock_folders import edit_json, stock_folder
from safetensors.torch import load_file, save_file

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.registry import list_backbones
from v1lit.cli.errors import UserError
from v1lit.cli.recipe import compose
from v1lit.cli.recipe_cli import RecipeCLI
from v1lit.errors import OptionError
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.training.begin_from import build_model, check_begin_from
from v1lit.training.module import V1Module
from v1lit.training.resuming import differences

pytestmark = pytest.mark.dependencies
POINTER = PointerConfig(gate=True, width=32)


def exported(folder: Path, family: str = "qwen2_5_vl", seed: int = 5, **tiny: Any) -> str:
    """A model folder; no weight in it is what a new model of seed 0 has."""
    torch.manual_seed(seed)
    PointAndCopyModel.build(BackboneConfig(family, tiny=tiny), POINTER).save_pretrained(folder)
    return str(folder)


def check(folder: str, **options: Any) -> None:
    backbone = BackboneConfig(**options.pop("backbone", {}))
    check_begin_from(folder, backbone, replace(POINTER, **options), RevisitConfig())


@pytest.mark.parametrize("family", list_backbones())
def test_all_weights_are_those_of_the_export(family: str, tmp_path: Path) -> None:
    folder, config = exported(tmp_path, family), BackboneConfig(family, freeze=["vision"])
    torch.manual_seed(0)
    model = build_model(config, POINTER, RevisitConfig(), folder)
    expected = PointAndCopyModel.from_pretrained(folder)
    for name, own in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], own), name
    anew = build_model(config, POINTER, RevisitConfig())
    for name, own in anew.named_parameters():
        assert model.get_parameter(name).requires_grad == own.requires_grad, name


def test_weights_take_the_type_of_the_recipe(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    model = build_model(BackboneConfig(dtype="bfloat16"), POINTER, RevisitConfig(), folder)
    assert {own.dtype for own in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"backbone": {"name": "llava"}}, "model.backbone.name is 'qwen2_5_vl' there and 'llava' here"),
        ({"backbone": {"tiny": {"hidden_size": 128}}}, "text_config.hidden_size is 64 there and 128 here"),
        ({"backbone": {"tiny": {"heads": 2, "kv_heads": 2}}}, "num_attention_heads is 4 there and 2 here"),
        ({"gate": False}, "model.pointer.gate is True there and False here"),
    ],
)
def test_another_model_is_refused_by_what_differs(options: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^model\.begin_from is .*it is another model") as refused:
        check(exported(tmp_path), **options)
    assert told in str(refused.value)


def test_options_that_shape_no_weight_may_differ(tmp_path: Path) -> None:
    check(exported(tmp_path), label_smoothing=0.1, loss="separate", z_weight=0.0)


def test_what_is_no_export_is_refused_by_what_it_is(tmp_path: Path) -> None:
    stock = str(stock_folder(tmp_path / "stock"))
    (tmp_path / "run" / "model").mkdir(parents=True)
    exported(tmp_path / "run" / "model")
    for folder, told in (
        (stock, "a qwen2_5_vl checkpoint without a pointer head"),
        (str(tmp_path / "nothing"), "there is no folder"),
        (str(tmp_path / "run"), f"give its folder {tmp_path / 'run' / 'model'}"),
    ):
        with pytest.raises(OptionError, match=r"model\.begin_from") as refused:
            check(folder)
        assert told in str(refused.value)


def test_missing_and_foreign_weights_are_named(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["pointer_head.other.weight"] = weights.pop("pointer_head.query.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing") as refused:
        build_model(BackboneConfig(), POINTER, RevisitConfig(), folder)
    assert "pointer_head.query.weight" in str(refused.value)
    assert "unexpected (1): pointer_head.other.weight" in str(refused.value)


def test_a_file_that_is_cut_off_is_found_before_anything_is_made(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(OptionError, match="is cut off"):
        check(folder)


def test_the_command_line_names_key_and_file(tmp_path: Path) -> None:
    other = exported(tmp_path / "other", "internvl")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"base: tiny_qwen\nmodel: {{begin_from: {other}}}\n")
    with pytest.raises(UserError, match=r"model\.begin_from is .*r\.yaml.*backbone\.name is 'internvl'"):
        RecipeCLI(compose(str(recipe)))


def test_a_checkpoint_needs_no_folder_that_its_training_began_from(tmp_path: Path) -> None:
    folder = exported(tmp_path / "export")
    module = V1Module(BackboneConfig(), POINTER, begin_from=folder)
    module.configure_model()
    state = module.state_dict()
    edit_json(tmp_path / "export" / "config.json", lambda config: config.clear())
    again = V1Module(**module.options)
    again.load_state_dict(state)
    assert all(torch.equal(own, state[name]) for name, own in again.state_dict().items())


def test_a_resumed_run_compares_the_content_of_the_folder() -> None:
    model = {"begin_from": "runs/x/model"}
    before = {"v1lit": {"model": model, "around": {"content of model.begin_from": "1"}}}
    now = {"model": {"begin_from": "elsewhere"}, "around": {"content of model.begin_from": "1"}}
    assert differences(before, now) == {}
    now["around"] = {"content of model.begin_from": "2"}
    assert differences(before, now) == {"model.begin_from": ("runs/x/model (1)", "elsewhere (2)")}
