"""Adapters of every family: nothing at the start, what they learn, saved alone, opened, merged."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.adapters import EVERYWHERE, adapted, learn
from helpers.stock_folders import edit_json, stock_folder
from safetensors.torch import load_file, save_file

import v1lit
from v1lit.backbones.adapters.config import AdapterConfig
from v1lit.backbones.adapters.folder import HEADS, OURS, WEIGHTS
from v1lit.backbones.adapters.inject import merge
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.backbones.registry import list_backbones
from v1lit.errors import OptionError
from v1lit.inference.predictor import Predictor
from v1lit.parallel.fill import fill
from v1lit.pointer.adapted import kept_names
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.revisit.config import RevisitConfig
from v1lit.testing.models import inputs, noise, packed_batch, training_batch
from v1lit.training.results import export

pytestmark = pytest.mark.dependencies

FAMILIES = list_backbones()
LORA = AdapterConfig("lora", rank=4, parts=EVERYWHERE)
DORA = AdapterConfig(
    "dora", rank=2, alpha=3.0, rslora=True, parts=["language", "vision"], train=["projector"]
)
both_kinds = pytest.mark.parametrize("adapter", [LORA, DORA], ids=["lora", "dora"])


def plain(family: str, seed: int = 0, **backbone: Any) -> PointAndCopyModel:
    torch.manual_seed(seed)
    return PointAndCopyModel.build(BackboneConfig(family, **backbone)).eval()


@torch.no_grad()
def said(model: PointAndCopyModel, family: str) -> torch.Tensor:
    """Joint logits, minus infinity as zero."""
    logits: torch.Tensor = model.eval()(**inputs(training_batch(family))).logits
    return logits.nan_to_num(neginf=0.0)


def on_linear_layers(family: str, adapter: AdapterConfig) -> AdapterConfig:
    """The same, but for a projector without linear layers: Gemma 3's is one bare matrix."""
    parts = [part for part in adapter.parts if (family, part) != ("gemma3", "projector")]
    return replace(adapter, parts=parts)


@both_kinds
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_change_not_a_bit_until_they_learn(family: str, adapter: AdapterConfig) -> None:
    adapter = on_linear_layers(family, adapter)
    model, other = adapted(family, adapter, learned=False), plain(family)
    assert torch.equal(said(model, family), said(other, family))
    before = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer.", ".")]), name
    learn(model)
    assert not torch.allclose(said(model, family), said(other, family), atol=1e-3)


@both_kinds
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_is_unmerged_and_the_stock_model_again(family: str, adapter: AdapterConfig) -> None:
    adapter = on_linear_layers(family, adapter)
    model, other = adapted(family, adapter), plain(family)
    before = said(model, family)
    merge(model.backbone)
    torch.testing.assert_close(said(model, family), before, rtol=1e-4, atol=1e-5)
    assert [(name, type(module)) for name, module in model.named_modules()] == [
        (name, type(module)) for name, module in other.named_modules()
    ]
    assert list(model.state_dict()) == list(other.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_is_kept_learns_and_all_of_it_in_a_packed_row(family: str) -> None:
    adapter = AdapterConfig("lora", rank=4, parts=["language", "vision"], train=["projector", "embeddings"])
    model = adapted(family, adapter, gradient_checkpointing=["language", "vision"]).train()
    batch = packed_batch(family) if model.family.packs else training_batch(family)
    model(**inputs(batch), labels=batch.labels).loss.backward()
    learned = {name for name, own in model.named_parameters() if own.grad is not None and own.grad.any()}
    assert learned == set(kept_names(model))
    assert learned == {name for name, own in model.named_parameters() if own.requires_grad}
    alone = adapted(family, adapter).train()
    alone(**inputs(training_batch(family)), labels=training_batch(family).labels).loss.backward()
    for name in learned:
        torch.testing.assert_close(
            model.get_parameter(name).grad, alone.get_parameter(name).grad, rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("family", [*FAMILIES, "tiny"])
def test_a_model_filled_by_parts_begins_alike(family: str, tmp_path: Path) -> None:
    adapter, weights = DORA, "tiny"
    if family == "tiny":
        family = "qwen2_5_vl"
    else:
        weights = str(stock_folder(tmp_path, family))
    model = adapted(family, adapter, learned=False, weights=weights)
    torch.manual_seed(0)
    config = BackboneConfig(family, weights)
    empty = PointAndCopyModel.build(config, adapter=adapter, empty=True)
    assert all(parameter.is_meta for parameter in empty.parameters())
    fill(empty, config, "cpu")
    ours, theirs = dict(empty.named_parameters()), dict(model.named_parameters())
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name]), name
        assert parameter.requires_grad == theirs[name].requires_grad, name


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_alone_opens_with_its_backbone(family: str, tmp_path: Path) -> None:
    adapter = AdapterConfig("dora", rank=2, parts=["language", "vision"], train=["projector"])
    base = stock_folder(tmp_path / "base", family)
    model = adapted(family, adapter, weights=str(base))
    processor = load_processor(BackboneConfig(family, str(base)))
    export(Predictor(model, processor), tmp_path / "adapter")
    assert (tmp_path / "adapter" / OURS).is_file()
    opened = v1lit.load(tmp_path / "adapter")
    assert torch.equal(said(opened.model, family), said(model, family))
    assert opened.model.adapter == adapter
    on = PointAndCopyModel.build(BackboneConfig(family, str(tmp_path / "adapter")))  # to be trained on
    for name, parameter in model.named_parameters():
        assert torch.equal(on.get_parameter(name), parameter), name
        assert on.get_parameter(name).requires_grad == parameter.requires_grad, name
    shutil.move(base, tmp_path / "moved")
    moved = PointAndCopyModel.from_pretrained(tmp_path / "adapter", base=str(tmp_path / "moved"))
    assert torch.equal(said(moved, family), said(model, family))


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_stay_tied(tied: bool, tmp_path: Path) -> None:
    tiny = {"tie_word_embeddings": tied}
    adapter = AdapterConfig("lora", rank=2, train=["embeddings"])
    model = adapted("qwen2_5_vl", adapter, tiny=tiny, seed=5)
    names = [name for name in kept_names(model) if "lora" not in name and name.startswith("backbone")]
    assert len(names) == 2 - tied
    before = said(model, "qwen2_5_vl")
    model.save_pretrained(tmp_path)
    opened = PointAndCopyModel.from_pretrained(tmp_path)
    assert (opened.get_output_embeddings().weight is opened.get_input_embeddings().weight) == tied
    assert torch.equal(said(opened, "qwen2_5_vl"), before)
    merge(model.backbone)
    torch.testing.assert_close(said(model, "qwen2_5_vl"), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "adapter",
    [LORA, DORA, AdapterConfig("lora", rank=2, modules=["*.q_proj"], train=["embeddings", "projector"])],
    ids=["lora", "dora", "whole parts"],
)
@pytest.mark.parametrize("family", ["llava"])
def test_peft_opens_the_folder_on_the_stock_class(
    family: str, adapter: AdapterConfig, tmp_path: Path
) -> None:
    from peft import PeftModel

    base = stock_folder(tmp_path / "base", family)
    model = adapted(family, adapter, weights=str(base))
    model.save_pretrained(tmp_path / "adapter")
    stock = getattr(transformers, model.family.model_class).from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft only warns of weights that fit nothing
        theirs = PeftModel.from_pretrained(stock, tmp_path / "adapter").merge_and_unload()
    merge(model.backbone)
    expected = model.backbone.state_dict()
    assert theirs.state_dict().keys() == expected.keys()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_gate_doubles_the_head_again_when_the_adapter_is_opened(tmp_path: Path) -> None:
    model = adapted("qwen2_5_vl", LORA, PointerConfig(gate=True))
    model.save_pretrained(tmp_path)
    assert torch.equal(
        said(PointAndCopyModel.from_pretrained(tmp_path), "qwen2_5_vl"), said(model, "qwen2_5_vl")
    )


def test_a_backbone_in_half_precision_has_what_learns_in_float32(tmp_path: Path) -> None:
    family = "qwen2_5_vl"
    model = adapted(family, DORA, dtype="bfloat16")
    types = {name: own.dtype for name, own in model.named_parameters()}
    kept = set(kept_names(model))
    assert {types[name] for name in kept} == {torch.float32}
    assert {kind for name, kind in types.items() if name not in kept} == {torch.bfloat16}
    predictor = Predictor(model, load_processor(BackboneConfig(family)))
    answer = predictor(noise((56, 84)), "Where is it?", max_new_tokens=4)
    export(predictor, tmp_path / "adapter")
    assert load_file(tmp_path / "adapter" / WEIGHTS).popitem()[1].dtype == torch.float32
    opened = v1lit.load(tmp_path / "adapter")
    assert {own.dtype for own in opened.model.parameters()} == {torch.bfloat16}
    assert opened(noise((56, 84)), "Where is it?", max_new_tokens=1).text[:1] == answer.text[:1]
    other = v1lit.load(tmp_path / "adapter", dtype="float32")
    assert {own.dtype for own in other.model.parameters()} == {torch.float32}


# ------------------------------------------------------------------ what is refused


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter's folder, beside its backbone in `base`, which it does not name."""
    folder = tmp_path_factory.mktemp("adapters")
    base = stock_folder(folder / "base")
    adapted("qwen2_5_vl", DORA, weights=str(base)).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def saved(kept: Path, tmp_path: Path) -> Path:
    """A copy of it that names its own copy of the backbone."""
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    base = str(tmp_path / "base")
    edit_json(tmp_path / "adapter/adapter_config.json", lambda c: c.update(base_model_name_or_path=base))
    return tmp_path / "adapter"


def change(path: Path, edit: Any) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def pickled(path: Path) -> None:
    path.rename(path.with_suffix(".bin"))


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.other.lora_A.weight"] = tensors.pop(min(tensors))


DAMAGED: dict[str, tuple[Any, str]] = {
    "a tensor is missing": (lambda f: change(f / WEIGHTS, lambda t: t.pop(min(t))), r"weights missing \(1\)"),
    "a head is missing": (lambda f: change(f / HEADS, lambda t: t.pop(min(t))), r"weights missing \(1\)"),
    "one too many": (
        lambda f: change(f / WEIGHTS, lambda t: t.update(other=torch.zeros(2))),
        r"that nothing of the model takes \(1\): other",
    ),
    "of another layer": (lambda f: change(f / WEIGHTS, renamed), r"weights missing \(1\)"),
    "another shape": (
        lambda f: change(f / WEIGHTS, lambda t: t.update({min(t): torch.zeros(2, 3)})),
        "of another shape",
    ),
    "cut off": (lambda f: truncate(f / WEIGHTS), "is cut off"),
    "heads cut off": (lambda f: truncate(f / HEADS), "is cut off"),
    "pickled": (lambda f: pickled(f / WEIGHTS), "is a pickle, which could run code"),
    "without heads": (lambda f: (f / HEADS).unlink(), f"without its {HEADS}"),
    "without peft's file": (
        lambda f: (f / "adapter_config.json").unlink(),
        "without its adapter_config.json",
    ),
    "two files at odds": (
        lambda f: edit_json(f / "adapter_config.json", lambda c: c.update(r=8)),
        f"r is 8 in adapter_config.json, but {OURS} says 2",
    ),
    "no adapter's options": (
        lambda f: edit_json(f / OURS, lambda c: c["adapter"].update(rank=0)),
        "does not describe an adapter: .*rank is 0",
    ),
    "of a later format": (lambda f: edit_json(f / OURS, lambda c: c.update(format=2)), "has format 2"),
    "another config": (
        lambda f: edit_json(
            f / OURS, lambda c: c["config"]["backbone_config"]["vision_config"].update(depth=9)
        ),
        "vision_config.depth was 9 and is",
    ),
    "other weights": (
        lambda f: change(f.parent / "base/model.safetensors", lambda t: t[max(t)].add_(1.0)),
        "the config is the same, but not the weights",
    ),
    "no backbone": (lambda f: shutil.rmtree(f.parent / "base"), "there is no such folder"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_folder_that_does_not_fit_is_refused(damage: str, saved: Path) -> None:
    spoil, words = DAMAGED[damage]
    spoil(saved)
    with pytest.raises(ValueError, match=words):
        PointAndCopyModel.from_pretrained(saved)


def test_the_same_weights_in_other_files_and_another_type_are_the_same_backbone(
    saved: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(base)
    before = json.loads((saved / OURS).read_text())["base"]["fingerprint"]
    model.save_pretrained(base, max_shard_size="200KB")
    (base / "model.safetensors").unlink()
    assert len(list(base.glob("*.safetensors"))) > 1
    for dtype in ("float32", "bfloat16"):
        opened = PointAndCopyModel.from_pretrained(saved, dtype=dtype)
        assert opened.base is not None
        assert opened.base.fingerprint == before


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("llava", {}, "is an adapter of qwen2_5_vl\nuse --model.backbone.name=qwen2_5_vl"),
        ("qwen2_5_vl", {"adapter": AdapterConfig("lora")}, "model.adapter.kind is 'lora'; the adapter in"),
        ("qwen2_5_vl", {"pointer": PointerConfig(normalize=True)}, "model.pointer.normalize is True"),
        ("qwen2_5_vl", {"revisit": RevisitConfig("point_only")}, "model.revisit.name"),
    ],
)  # fmt: skip
def test_training_on_with_other_options_is_refused(
    family: str, options: dict[str, Any], words: str, saved: Path
) -> None:
    with pytest.raises(OptionError, match=words):
        PointAndCopyModel.build(BackboneConfig(family, str(saved)), **options)


def test_a_part_that_is_frozen_has_no_adapters() -> None:
    with pytest.raises(
        OptionError, match=r"model\.backbone\.freeze is \['language'\]; model\.adapter\.parts"
    ):
        adapted("qwen2_5_vl", AdapterConfig("lora"), freeze=["language"])


def test_generation_with_adapters_is_that_of_the_merged_model() -> None:
    family = "qwen2_5_vl"
    model = adapted(family, LORA)
    predictor = Predictor(model, load_processor(BackboneConfig(family)))
    before = predictor(noise((112, 56)), "Where?", max_new_tokens=8).text
    merge(model.backbone)
    assert predictor(noise((112, 56)), "Where?", max_new_tokens=8).text == before
