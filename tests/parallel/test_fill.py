"""A model that is made empty and filled is the one that ordinary loading makes, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.stock_folders import edit_json, stock_folder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import Chunk, Concatenate, WeightConverter

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.load import load_backbone
from v1lit.backbones.registry import BUILTIN
from v1lit.parallel.fill import check_filled, fill, fill_from_model, move_buffers
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel

FAMILIES = tuple(BUILTIN)


def filled(config: BackboneConfig, pointer: PointerConfig | None = None) -> PointAndCopyModel:
    """Made empty, then filled in this one process."""
    model = PointAndCopyModel.build(config, pointer, empty=True)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    torch.manual_seed(3)
    fill(model, config, "cpu")
    return model


def ordinary(config: BackboneConfig, pointer: PointerConfig | None = None) -> PointAndCopyModel:
    torch.manual_seed(3)
    return PointAndCopyModel.build(config, pointer)


def assert_same(model: nn.Module, other: nn.Module) -> None:
    """Classes, order, types, bits, and what learns; buffers outside the state dict included."""
    assert [(name, type(module)) for name, module in model.named_modules()] == [
        (name, type(module)) for name, module in other.named_modules()
    ]
    for tensors in ("named_parameters", "named_buffers"):
        ours, theirs = (list(getattr(one, tensors)()) for one in (model, other))
        assert [name for name, _ in ours] == [name for name, _ in theirs]
        for (name, tensor), (_, wanted) in zip(ours, theirs, strict=True):
            assert tensor.dtype == wanted.dtype, name
            assert torch.equal(tensor, wanted), name
            assert tensor.requires_grad == wanted.requires_grad, name


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> str:
    """The folder, with other weights in its file."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return str(folder)


def refusals(config: BackboneConfig) -> tuple[str, str]:
    """What the making of an empty model says against a checkpoint, and what ordinary loading says."""
    said = []
    for empty in (True, False):
        with pytest.raises(ValueError, match="weights") as refused:
            PointAndCopyModel.build(config, empty=empty)
        said.append(str(refused.value))
    return said[0], said[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", ["tiny", "folder"])
def test_filling_is_ordinary_loading(family: str, weights: str, tmp_path: Path) -> None:
    if weights == "folder":
        weights = str(stock_folder(tmp_path, family))
    config = BackboneConfig(family, weights, freeze=["vision"], gradient_checkpointing=["language"])
    model, other = filled(config), ordinary(config)
    assert_same(model, other)
    assert model.config.to_dict() == other.config.to_dict()
    assert model.config.backbone_config.name_or_path == other.config.backbone_config.name_or_path
    assert model.generation_config.to_dict() == other.generation_config.to_dict()
    assert model.training == other.training


@pytest.mark.parametrize("weights", ["tiny", "folder"])
def test_the_random_numbers_that_follow_are_the_same(weights: str, tmp_path: Path) -> None:
    config = BackboneConfig(weights=str(stock_folder(tmp_path)) if weights == "folder" else weights)
    filled(config)
    after = torch.get_rng_state()
    ordinary(config)
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.startswith(("qwen3", "timm"))])
def test_names_of_older_and_newer_layouts_are_understood(family: str, tmp_path: Path) -> None:
    """Of the families that have had several."""
    older = load_file(stock_folder(tmp_path, family) / "model.safetensors").keys()
    newer = {
        name: tensor.clone() for name, tensor in load_backbone(BackboneConfig(family)).state_dict().items()
    }
    assert set(newer) != set(older)
    config = BackboneConfig(family, change_weights(tmp_path, lambda _: newer))
    assert_same(filled(config), ordinary(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_with_an_index_are_read(family: str, tmp_path: Path) -> None:
    whole = load_backbone(BackboneConfig(family, str(stock_folder(tmp_path / "one", family))))
    whole.save_pretrained(tmp_path / "many", max_shard_size="100KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    config = BackboneConfig(family, str(tmp_path / "many"))
    assert_same(filled(config), ordinary(config))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
@pytest.mark.parametrize("named", ["bfloat16", None])
def test_types_are_those_of_ordinary_loading(
    stored: torch.dtype, dtype: Any, named: str | None, tmp_path: Path
) -> None:
    folder = stock_folder(tmp_path)
    edit_json(folder / "config.json", lambda content: _name_dtype(content, named))
    change_weights(folder, lambda weights: {name: one.to(stored) for name, one in weights.items()})
    config = BackboneConfig(weights=str(folder), dtype=dtype)
    model = filled(config)
    assert_same(model, ordinary(config))
    assert model.config.dtype == ordinary(config).config.dtype


def _name_dtype(content: dict[str, Any], named: str | None) -> None:
    for part in (content, content["text_config"], content["vision_config"]):
        part.pop("dtype", None)
        if named is not None:
            part["dtype"] = named


def test_parts_that_are_no_good_in_half_precision_keep_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stock = transformers.Qwen2_5_VLForConditionalGeneration
    monkeypatch.setattr(stock, "_keep_in_fp32_modules_strict", {"visual.merger"})
    config = BackboneConfig(weights=str(stock_folder(tmp_path)), dtype="bfloat16")
    model = filled(config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16, torch.float32}
    assert_same(model, ordinary(config))


@pytest.mark.parametrize("weights", ["tiny", "folder"])
def test_a_gate_doubles_the_head_as_in_ordinary_loading(weights: str, tmp_path: Path) -> None:
    config = BackboneConfig(weights=str(stock_folder(tmp_path)) if weights == "folder" else weights)
    gate = PointerConfig(gate=True)
    model = filled(config, gate)
    assert_same(model, ordinary(config, gate))
    assert torch.equal(
        model.get_output_embeddings().weight, 2 * ordinary(config).get_output_embeddings().weight
    )


def tied_folder(folder: Path) -> Path:
    load_backbone(BackboneConfig(tiny={"tie_word_embeddings": True})).save_pretrained(folder)
    return folder


EMBEDDINGS, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIES: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "embeddings": lambda weights: weights,
    "head": lambda weights: {LM_HEAD if name == EMBEDDINGS else name: w for name, w in weights.items()},
    "both": lambda weights: weights | {LM_HEAD: weights[EMBEDDINGS].clone()},
}


@pytest.mark.parametrize("present", TIES)
def test_tied_embeddings_stay_one_whichever_the_files_have(present: str, tmp_path: Path) -> None:
    config = BackboneConfig(weights=change_weights(tied_folder(tmp_path), TIES[present]))
    model = filled(config)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert_same(model, ordinary(config))


def test_tied_embeddings_that_differ_in_the_files_are_refused_in_the_same_words(tmp_path: Path) -> None:
    def differ(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights | {LM_HEAD: weights[EMBEDDINGS] + 1}

    ours, theirs = refusals(BackboneConfig(weights=change_weights(tied_folder(tmp_path), differ)))
    assert ours == theirs
    assert "differ" in ours


def test_a_gate_on_a_tied_head_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = BackboneConfig(weights=str(tied_folder(tmp_path)))
    with pytest.raises(ValueError, match="ties it to the input embeddings"):
        PointAndCopyModel.build(config, PointerConfig(gate=True), empty=True)


MISFITS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "missing (3)": lambda weights: {name: w for name, w in weights.items() if ".0.mlp.up" not in name},
    "unexpected (1)": lambda weights: weights | {"model.more.weight": torch.ones(2)},
    "of another shape (1)": lambda weights: weights | {"model.norm.weight": torch.ones(7)},
    "missing (1)": lambda weights: {name: w for name, w in weights.items() if name != LM_HEAD},
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_files_that_do_not_fit_are_refused_in_the_same_words(misfit: str, tmp_path: Path) -> None:
    ours, theirs = refusals(BackboneConfig(weights=change_weights(stock_folder(tmp_path), MISFITS[misfit])))
    assert ours == theirs
    assert misfit in ours


def test_files_that_changed_since_the_model_was_made_are_refused(tmp_path: Path) -> None:
    config = BackboneConfig(weights=str(stock_folder(tmp_path)))
    model = PointAndCopyModel.build(config, empty=True)
    change_weights(tmp_path, MISFITS["missing (1)"])
    with pytest.raises(ValueError, match=r"missing \(1\): lm_head.weight"):
        fill(model, config, "cpu")


def test_what_transformers_does_not_mind_is_not_minded(tmp_path: Path) -> None:
    def add_old_buffer(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}

    config = BackboneConfig(weights=change_weights(stock_folder(tmp_path), add_old_buffer))
    assert_same(filled(config), ordinary(config))


@pytest.fixture
def converting(tmp_path: Path) -> Iterator[BackboneConfig]:
    """Of an ordinary folder, while transformers knows a further layout of its model."""
    folder, name = stock_folder(tmp_path), "Qwen2_5_VLForConditionalGeneration"
    before = get_checkpoint_conversion_mapping(name)
    merged = WeightConverter(["mlp.up_1.weight", "mlp.up_2.weight"], "mlp.up_proj.weight", [Concatenate(0)])
    biases = ["self_attn.k_proj.bias", "self_attn.v_proj.bias"]
    split = WeightConverter("self_attn.kv.bias", biases, [Chunk(0)])
    register_checkpoint_conversion_mapping(name, [*before, merged, split], overwrite=True)
    yield BackboneConfig(weights=str(folder))
    register_checkpoint_conversion_mapping(name, before, overwrite=True)


def _converted(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = dict(weights)
    for name in [name for name in weights if name.startswith("model.layers")]:
        if name.endswith("mlp.up_proj.weight"):
            one, other = weights.pop(name).chunk(2)
            weights[name.replace("up_proj", "up_1")] = one.clone()
            weights[name.replace("up_proj", "up_2")] = other.clone()
        if name.endswith("k_proj.bias"):
            values = weights.pop(name.replace("k_proj", "v_proj"))
            weights[name.replace("k_proj", "kv")] = torch.cat([weights.pop(name), values])
    return weights


def test_weights_that_are_merged_or_split_while_loading_are_the_same(converting: BackboneConfig) -> None:
    plain, file = ordinary(converting), Path(converting.weights, "model.safetensors")
    before = set(load_file(file))
    change_weights(file.parent, _converted)
    assert len(before - set(load_file(file))) == 6
    model = filled(converting)
    assert_same(model, ordinary(converting))
    assert_same(model, plain)


def test_parts_of_converted_weights_that_miss_are_named_in_the_same_words(converting: BackboneConfig) -> None:
    def without_biases(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: one for name, one in _converted(weights).items() if ".kv." not in name}

    change_weights(Path(converting.weights), without_biases)
    ours, theirs = refusals(converting)
    assert ours == theirs
    assert "missing (4)" in ours


def test_what_has_no_values_is_named() -> None:
    config = BackboneConfig()
    model = PointAndCopyModel.build(config, empty=True)
    fill_from_model(model.backbone, PointAndCopyModel.build(config).backbone, "cpu")
    with pytest.raises(RuntimeError, match=r"4 tensors .* without values: pointer_head\.query\.weight"):
        check_filled(model)


def test_buffers_follow_the_parameters_to_their_device() -> None:
    model = PointAndCopyModel.build(BackboneConfig(), empty=True)
    assert {buffer.device.type for buffer in model.buffers()} == {"cpu"}
    move_buffers(model, "meta")
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
