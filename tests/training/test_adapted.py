"""Runs with adapters: what they save, that they resume exactly, and that ranks train as one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.curves import LEARNS, Setting, assert_alike, assert_alike_in_twos
from helpers.forked import needs_fork
from lightning import Callback, Trainer
from transformers import AutoModelForImageTextToText

from v1lit.backbones.adapters.config import AdapterConfig
from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig, PackingConfig
from v1lit.errors import OptionError
from v1lit.pointer.adapted import kept_names
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.adapted import BASE
from v1lit.training.config import OptimizerConfig
from v1lit.training.exporting import ExportMismatchError, ExportOptions, export_checkpoint
from v1lit.training.groups import places
from v1lit.training.merging import export_merged
from v1lit.training.module import V1Module
from v1lit.training.resuming import RecipeChangedError
from v1lit.training.saved_state import read_checkpoint
from v1lit.training.strategies import Sharded

pytestmark = pytest.mark.dependencies

LORA = AdapterConfig("lora", rank=4, parts=["language", "vision"], train=["projector"])
DORA = AdapterConfig("dora", rank=2, dropout=0.2)
RATES = OptimizerConfig(lr=1e-3, parts={"vision": {"lr": 3e-4}, "pointer": {"lr": 2e-3}}, layer_decay=0.8)
PLAIN = OptimizerConfig(lr=1e-3)


class Save(Callback):
    """Writes a checkpoint after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def train(make_data: Any, make_trainer: Any) -> Callable[..., V1Module]:
    def run(
        steps: int,
        adapter: AdapterConfig = LORA,
        *callbacks: Callback,
        resume: Path | None = None,
        packing: int = 0,
        precision: str = "32-true",
        **options: Any,
    ) -> V1Module:
        backbone = options.pop("backbone", BackboneConfig("qwen2_5_vl"))
        module = V1Module(backbone, adapter=adapter, **{"optimizer": RATES, **options})
        trainer = make_trainer(
            max_steps=steps, callbacks=list(callbacks), limit_val_batches=0, precision=precision
        )
        rows: dict[str, Any] = {}
        if packing:
            rows = {"packing": PackingConfig(packing), "encoding": EncodingConfig(max_tokens=packing)}
        data = make_data(**rows)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
        return module

    return run


def assert_same(one: V1Module, other: V1Module) -> None:
    ours, theirs = dict(one.model.named_parameters()), dict(other.model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "options",
    [
        {"adapter": LORA, "packing": 512},
        {"adapter": DORA, "optimizer": replace(RATES, parts={}, ema_decay=0.7)},
    ],
    ids=["lora in packed rows", "dora with dropout and an average"],
)
def test_a_resumed_run_is_one_that_never_stopped(train: Any, tmp_path: Path, options: Any) -> None:
    path = tmp_path / "amid.ckpt"
    module = train(4, options.pop("adapter"), Save(2, path), **options)
    resumed = train(4, module.adapter_config, resume=path, **options)
    assert_same(module, resumed)


def test_a_checkpoint_holds_what_is_trained_and_opens_with_its_backbone(train: Any, tmp_path: Path) -> None:
    path = tmp_path / "end.ckpt"
    start = V1Module(BackboneConfig("qwen2_5_vl"), adapter=LORA, optimizer=RATES)
    start.configure_model()
    module = train(2, LORA, Save(2, path))
    content = read_checkpoint(path)
    kept = {f"model.{name}" for name in kept_names(module.model)}
    assert content["state_dict"].keys() == kept
    states = content["optimizer_states"][0]["state"]
    assert len(states) == len(kept)
    learned = {name for name, own in module.model.named_parameters() if own.requires_grad}
    assert {f"model.{name}" for name in learned} == kept
    for name, own in module.model.named_parameters():
        assert torch.equal(own, start.model.get_parameter(name)) == (name not in learned), name
    opened = V1Module.load_from_checkpoint(path, weights_only=True)
    assert_same(module, opened)
    content["state_dict"].pop(min(kept))
    with pytest.raises(RuntimeError, match="weights missing"):
        opened.load_state_dict(content["state_dict"])


def test_rates_of_parts_and_layers_are_those_of_adapters_in_them(train: Any) -> None:
    module = V1Module(BackboneConfig("qwen2_5_vl"), adapter=LORA, optimizer=RATES)
    module.configure_model()
    found = places(module.model, RATES)
    for name, place in found.items():
        if "lora" in name:
            assert place.part == ("vision" if ".visual." in name else "language")
            assert place.depth == int(".0." in name.partition("lora")[0])


def test_a_recipe_with_another_adapter_cannot_resume_it(train: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    train(1, LORA, Save(1, path))
    with pytest.raises(RecipeChangedError, match=r"model\.adapter\.rank was 4 and is 8"):
        train(2, replace(LORA, rank=8), resume=path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, BASE: "0"}, path)
    with pytest.raises(RecipeChangedError, match="belong to another backbone"):
        train(2, LORA, resume=path)
    with pytest.raises(ValueError, match="has adapters of another backbone"):
        export_checkpoint(path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_backbone_in_bfloat16_trains_under_autocast_only(train: Any, tmp_path: Path, kind: Any) -> None:
    half = BackboneConfig("qwen2_5_vl", dtype="bfloat16", gradient_checkpointing=["language"])
    adapter = AdapterConfig(kind, rank=2)
    path = tmp_path / "a.ckpt"
    module = train(2, adapter, Save(2, path), backbone=half, precision="bf16-mixed", optimizer=PLAIN)
    assert {own.dtype for own in module.model.parameters() if own.requires_grad} == {torch.float32}
    assert {own.dtype for own in module.model.parameters() if not own.requires_grad} == {torch.bfloat16}
    assert all(tensor.dtype == torch.float32 for tensor in read_checkpoint(path)["state_dict"].values())
    made = export_merged(path, tmp_path / "merged")
    assert "before and after merging differ" in made.check
    merged = PointAndCopyModel.from_pretrained(tmp_path / "merged", dtype="auto")
    assert {own.dtype for own in merged.parameters()} == {torch.bfloat16}
    with pytest.raises(OptionError, match=r"model\.backbone\.dtype is 'bfloat16'; what learns"):
        train(2, adapter, backbone=half, optimizer=PLAIN)


def test_merged_in_either_layout_and_refused_where_there_is_nothing_to_merge(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    module = train(2, LORA, Save(2, path))
    export_checkpoint(path, tmp_path / "adapter")
    with pytest.raises(ValueError, match="merge it: --merge"):
        export_checkpoint(path, tmp_path / "published", ExportOptions("published"))
    made = export_merged(tmp_path / "adapter", tmp_path / "merged", ExportOptions(remote_code=True))
    assert made.check.count("differ by") == 2
    export_merged(path, tmp_path / "published", ExportOptions("published", dtype="float32"))
    one = PointAndCopyModel.from_pretrained(tmp_path / "merged")
    by_auto = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert all(torch.equal(by_auto.get_parameter(name), own) for name, own in one.named_parameters())
    other = PointAndCopyModel.from_published(tmp_path / "published")
    for name, own in one.named_parameters():
        assert torch.equal(other.get_parameter(name), own), name
    opened = PointAndCopyModel.from_pretrained(tmp_path / "adapter")
    for name in kept_names(module.model):
        assert torch.equal(opened.get_parameter(name), module.model.get_parameter(name)), name
    with pytest.raises(ValueError, match="published exists already"):
        export_merged(path, tmp_path / "published")
    plain = V1Module(BackboneConfig("qwen2_5_vl"))
    train_plain = tmp_path / "plain.ckpt"
    plain.configure_model()
    content = {**torch.load(path, weights_only=True), "state_dict": plain.state_dict()}
    torch.save({**content, "hyper_parameters": plain.options}, train_plain)
    with pytest.raises(ValueError, match="has no adapters to merge"):
        export_merged(train_plain, tmp_path / "nothing")
    monkeypatch.setattr("v1lit.training.merging.merge", lambda model: None)
    with pytest.raises((ExportMismatchError, ValueError)):
        export_merged(path, tmp_path / "unmerged")
    assert not (tmp_path / "unmerged").exists()


# ------------------------------------------------------------------ on several ranks


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize(
    ("strategy", "adapter", "options", "nodes"),
    [
        ("fsdp2", LORA, {"backbone": {"gradient_checkpointing": ["language", "vision"]}}, 1),
        ("fsdp2", replace(DORA, dropout=0.0, train=["embeddings"]), {"family": "qwen3_vl"}, 1),
        ("fsdp2", LORA, {"backbone": {"tiny": {"tie_word_embeddings": True}}}, 1),
        ("hsdp", LORA, {}, 2),
        ("ddp", replace(LORA, kind="dora"), {"data": {"revisit": LEARNS}, "module": {"revisit": LEARNS}}, 1),
    ],
    ids=["fsdp2", "dora on deep features", "tied", "hsdp", "ddp"],
)
def test_ranks_train_as_one(
    scenes: Path, strategy: Any, adapter: AdapterConfig, options: dict[str, Any], nodes: int
) -> None:
    module = {"adapter": adapter, **options.pop("module", {})}
    assert_alike(Setting(scenes, module=module, steps=3, **options), strategy, 2 * nodes, nodes)


@pytest.mark.slow
@needs_fork
def test_two_ranks_that_share_rows_train_as_one(scenes: Path) -> None:
    setting = Setting(scenes, module={"adapter": LORA}, steps=2)
    assert_alike_in_twos(setting, Sharded(context=2, process_group_backend="gloo"), 2, 4)


def test_ranks_that_share_matrices_have_no_adapters() -> None:
    strategy = Sharded(tensor=2)
    with pytest.raises(OptionError, match="tensor is 2; ranks cannot share the matrices of layers with"):
        strategy._refuse_adapter(LORA)
    with pytest.raises(OptionError, match=r"model\.adapter\.kind is 'qlora'; weights in 4 bits are not"):
        Sharded()._refuse_adapter(replace(LORA, kind="qlora"))
