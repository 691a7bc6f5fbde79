"""A run that goes on with another recipe: what is changed is applied or refused, and never only recorded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

import v1lit
from v1lit.backbones.config import BackboneConfig
from v1lit.pointer.config import PointerConfig
from v1lit.training.config import OptimizerConfig
from v1lit.training.module import V1Module
from v1lit.training.optimizer import build_optimizer, learning_rate_factor
from v1lit.training.resuming import (
    CHANGES,
    RECIPE,
    WITHOUT,
    Change,
    RecipeChangedError,
    Resumed,
    carry_over,
    check_resume,
    differences,
    refuse_changes,
)
from v1lit.training.saved_state import read_checkpoint

OTHER = {
    "model.backbone.name": "llava",
    "model.backbone.tiny": {"hidden_size": 96},
    "model.pointer.tie_heads": True,
    "model.pointer.width": 8,
    "model.pointer.key_source": "embedding",
    "model.pointer.normalize": True,
    "model.pointer.gate": True,
    "model.revisit.name": "point_only",
    "model.revisit.options": {"detach": True},
    "model.adapter.kind": "lora",
    "model.adapter.rank": 8,
    "model.adapter.alpha": 8.0,
    "model.adapter.rslora": True,
    "model.adapter.parts": ["vision"],
    "model.adapter.modules": ["*.q_proj"],
    "model.adapter.train": ["embeddings"],
    "model.backbone.weights": "models/qwen",
    "model.backbone.freeze": ["vision"],
    "model.pointer.identity_init": True,
    "model.init_seed": 5,
    "model.optimizer.name": "muon",
    "model.freeze": ["*.layers.0.*"],
    "model.begin_from": "runs/first/model",
    "model.optimizer.parts": {"vision": {"lr": 1e-5}},
    "model.optimizer.layer_decay": 0.9,
    "model.optimizer.ema_decay": 0.99,
}
"""Of every key that a resumed run cannot change, another value than the default."""
ADAPTER_KIND = "model.adapter.kind"
OLD = OptimizerConfig(lr=1e-3, schedule="linear")
NEW = OptimizerConfig(
    lr=2e-4, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, schedule="cosine", warmup=0.5, final=0.25
)


def with_value(options: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a module's options with another value under `model...`."""
    _, *groups, name = key.split(".")
    if not groups:
        return {**options, name: value}
    return {**options, groups[0]: {**options[groups[0]], name: value}}


def written(module: V1Module, step: int = 4, epochs: int = 0) -> dict[str, Any]:
    """What matters here of a checkpoint."""
    loops = {"fit_loop": {"epoch_progress": {"current": {"completed": epochs}}}}
    return {RECIPE: {"model": module.options}, "global_step": step, "loops": loops, "state_dict": {}}


def refuse(checkpoint: dict[str, Any], options: dict[str, Any], trainer: Any) -> None:
    refuse_changes(checkpoint, Resumed(options, trainer), "x.ckpt")


@pytest.fixture(scope="module")
def plain() -> V1Module:
    return V1Module(BackboneConfig("qwen2_5_vl"))


@pytest.fixture
def trained(make_data: Any, make_trainer: Any, tmp_path: Path) -> Callable[..., tuple[V1Module, Path]]:
    """Train a module for some steps, and give its checkpoint."""

    def train(
        optimizer: OptimizerConfig = OLD, data: Any = None, resume: Path | None = None, **options: Any
    ) -> tuple[V1Module, Path]:
        module = V1Module(BackboneConfig("qwen2_5_vl"), optimizer=optimizer)
        trainer = make_trainer(**{"max_steps": 1, "max_epochs": -1, "limit_val_batches": 0, **options})
        data = data or make_data()
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
        path = tmp_path / f"{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        return module, path

    return train


# ---------------------------------------------------------------------- refused


def test_there_is_another_value_of_every_key_that_is_refused() -> None:
    assert set(OTHER) == {
        key for key, change in CHANGES.items() if change in (Change.MODEL, Change.START, Change.STATE)
    }


@pytest.mark.parametrize("key", OTHER)
def test_what_a_resumed_run_cannot_change_is_refused_with_what_was_and_what_is(
    key: str, plain: V1Module, make_trainer: Any
) -> None:
    was = plain.options
    if key.startswith("model.adapter.") and key != ADAPTER_KIND:
        was = with_value(was, ADAPTER_KIND, "dora")
    checkpoint = {**written(plain), RECIPE: {"model": was}}
    with pytest.raises(RecipeChangedError) as refused:
        refuse(checkpoint, with_value(was, key, OTHER[key]), make_trainer(max_steps=9))
    first, second = str(refused.value).splitlines()
    assert f"x.ckpt cannot be resumed: {key} was " in first
    assert "begin a new run" in second
    assert refused.value.keys == [key]


def test_options_of_adapters_are_no_change_where_there_are_none(plain: V1Module, make_trainer: Any) -> None:
    now = plain.options
    for key in OTHER.keys() - {ADAPTER_KIND}:
        if key.startswith("model.adapter."):
            now = with_value(now, key, OTHER[key])
    now = with_value(now, "model.adapter.dropout", 0.1)
    assert differences(written(plain), {"model": now}) == {}
    with pytest.raises(RecipeChangedError) as refused:
        refuse(written(plain), with_value(now, ADAPTER_KIND, "lora"), make_trainer(max_steps=9))
    assert refused.value.keys == [ADAPTER_KIND]


def test_rates_of_parts_and_the_decay_of_an_average_may_change_where_there_were_some(
    make_trainer: Any,
) -> None:
    one, two = (
        V1Module(BackboneConfig(), optimizer=OptimizerConfig(parts=parts, layer_decay=layers, ema_decay=ema))
        for parts, layers, ema in (
            ({"vision": {"lr": 1e-5}}, 0.9, 0.9),
            ({"pointer": {"weight_decay": 0.1}}, 0.8, 0.99),
        )
    )
    refuse(written(one), two.options, make_trainer(max_steps=9))
    assert set(WITHOUT) == {key for key, change in CHANGES.items() if change is Change.STATE}


def test_the_same_frozen_parts_in_another_order_are_no_change(make_trainer: Any) -> None:
    one, two = (
        V1Module(BackboneConfig(freeze=parts)) for parts in (["vision", "pointer"], ["pointer", "vision"])
    )
    refuse(written(one), two.options, make_trainer(max_steps=9))


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"max_steps": 3}, "trainer.max_steps is 3"), ({"max_epochs": 1}, "trainer.max_epochs is 1")],
)
def test_a_limit_that_the_checkpoint_is_behind_is_refused(
    limits: dict[str, int], words: str, plain: V1Module, make_trainer: Any
) -> None:
    with pytest.raises(RecipeChangedError, match=f"{words}, but x.ckpt was written after"):
        refuse(written(plain, step=4, epochs=2), plain.options, make_trainer(**limits))
    refuse(written(plain, step=4, epochs=2), plain.options, make_trainer(max_steps=4, max_epochs=2))


def test_a_checkpoint_that_does_not_say_how_it_was_trained_is_refused(
    plain: V1Module, make_trainer: Any
) -> None:
    checkpoint = written(plain)
    del checkpoint[RECIPE]
    with pytest.raises(RecipeChangedError, match="does not say how it was trained"):
        refuse(checkpoint, plain.options, make_trainer())


def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "no.ckpt"
    for content in (b"", b"nothing", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"no\.ckpt is no checkpoint that can be read"):
            read_checkpoint(path)
    torch.save({"weights": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"no\.ckpt is no checkpoint of a training run"):
        read_checkpoint(path)


def test_with_lightnings_trainer_alone_the_same_is_refused(
    trained: Any, make_data: Any, make_trainer: Any
) -> None:
    _, path = trained()
    module = V1Module(BackboneConfig("qwen2_5_vl"), pointer=PointerConfig(key_source="embedding"))
    with pytest.raises(RecipeChangedError, match=r'key_source was "hidden" and is "embedding"'):
        make_trainer(max_steps=2).fit(module, datamodule=make_data(), ckpt_path=path, weights_only=True)


def test_amid_an_epoch_another_order_of_the_data_is_refused_before_anything_is_loaded(
    trained: Any, make_data: Any, make_trainer: Any
) -> None:
    module, path = trained()
    with pytest.raises(RecipeChangedError, match=r"in the middle of an epoch: data.seed was 0 and is 4"):
        check_resume(str(path), Resumed(module.options, make_trainer(max_steps=2), make_data(seed=4)))
    check_resume(str(path), Resumed(module.options, make_trainer(max_steps=2), make_data()))


def test_a_folder_of_weights_may_move_but_not_hold_others(
    plain: V1Module, make_trainer: Any, tmp_path: Path
) -> None:
    files = {"old": b"a" * 200_000, "moved": b"a" * 200_000, "tuned": b"a" * 199_999 + b"b"}
    runs = {}
    for name, content in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        options = with_value(plain.options, "model.backbone.weights", str(tmp_path / name))
        runs[name] = Resumed(options, make_trainer(max_steps=9))
    checkpoint = written(plain)
    runs["old"].save(checkpoint)
    assert differences(checkpoint, runs["moved"].recipe) == {}
    (key, (was, now)), *rest = differences(checkpoint, runs["tuned"].recipe).items()
    assert (key, rest) == ("model.backbone.weights", [])
    assert was.startswith(f"{tmp_path}/old (")
    assert now.startswith(f"{tmp_path}/tuned (")
    with pytest.raises(RecipeChangedError, match="cannot be resumed"):
        refuse_changes(checkpoint, runs["tuned"], "x.ckpt")


# ---------------------------------------------------------------------- applied


def test_every_option_of_the_optimizer_is_another_one_here() -> None:
    same = {
        field.name
        for field in fields(OptimizerConfig)
        if getattr(OLD, field.name) == getattr(NEW, field.name)
    }
    assert same == {"name", *(key.removeprefix("model.optimizer.") for key in WITHOUT)}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_new_options_of_the_optimizer_are_used_from_the_next_step_on(trained: Any, name: Any) -> None:
    new = replace(NEW, name=name)
    _, path = trained(replace(OLD, name=name))
    seen: list[list[dict[str, Any]]] = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
            groups = trainer.optimizers[0].param_groups
            seen.append([{**group, "params": len(group["params"])} for group in groups])

    module, _ = trained(new, resume=path, max_steps=3, callbacks=[Look()])
    expected = build_optimizer(module.model.named_parameters(), new).param_groups
    assert len(seen) == 2
    for step, groups in enumerate(seen, start=1):
        assert len(groups) == len(expected)
        for group, wanted in zip(groups, expected, strict=True):
            rate = new.lr * learning_rate_factor(step, 3, new)
            wanted = {
                **wanted,
                "params": len(wanted["params"]),
                "initial_lr": new.lr,
                "lr": pytest.approx(rate),
            }
            assert group == wanted


def test_what_is_applied_is_said_with_what_was_and_what_is(
    plain: V1Module, make_trainer: Any, capsys: Any
) -> None:
    lines: list[str] = []
    now = with_value(plain.options, "model.optimizer.lr", 1e-5)
    checkpoint = written(plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("v1lit.training.resuming.rank_zero_info", lines.append)
        carry_over(checkpoint, differences(checkpoint, {"model": now}), make_trainer())
    assert lines == ["changed since the checkpoint: model.optimizer.lr 3e-05 -> 1e-05"]


def test_every_job_has_its_own_time_and_patience(plain: V1Module, make_trainer: Any) -> None:
    stopping = EarlyStopping("train/loss", patience=7)
    trainer = make_trainer(max_time=timedelta(seconds=5), callbacks=[stopping])
    states = {
        "Timer": {"time_elapsed": {"train": 5.0}},
        stopping.state_key: {"wait_count": 2, "patience": 3},
    }
    checkpoint = {**written(plain), "callbacks": dict(states)}
    carry_over(checkpoint, {}, trainer)
    assert checkpoint["callbacks"] == {stopping.state_key: {"wait_count": 2, "patience": 7}}


MEASURED = {
    "model.pointer.z_weight": (1e-5, 1e-4),
    "data.encoding.supervise": ("assistant", "all"),
    "model.revisit.control": ("none", "shuffled"),
    "the validation shards": ("0123", "4567"),
}


@pytest.mark.parametrize("key", MEASURED)
def test_a_best_value_of_another_measure_is_forgotten(
    key: str, plain: V1Module, make_trainer: Any, tmp_path: Path
) -> None:
    by_loss, by_accuracy = (
        ModelCheckpoint(tmp_path, monitor=name) for name in ("val/loss", "val/forced_text_accuracy")
    )
    trainer = make_trainer(enable_checkpointing=True, callbacks=[by_loss, by_accuracy])
    keys = [by_loss.state_key, by_accuracy.state_key]
    for changed, left in (({key: MEASURED[key]}, keys[1:]), ({"model.optimizer.lr": (1, 2)}, keys)):
        checkpoint = {**written(plain), "callbacks": {one: {} for one in keys}}
        carry_over(checkpoint, changed, trainer)
        assert list(checkpoint["callbacks"]) == left


# ---------------------------------------------------------------------- what a checkpoint says


def test_a_checkpoint_says_with_which_options_it_was_trained_as_plain_data(
    trained: Any, make_data: Any, make_trainer: Any
) -> None:
    data = make_data(max_val_examples=3)
    module, path = trained(data=data)
    checkpoint = read_checkpoint(path)  # weights_only
    assert V1Module(**checkpoint["hyper_parameters"]).options == module.options
    assert checkpoint["v1lit"]["data"] == data.options
    assert "datamodule_hyper_parameters" not in checkpoint  # of which `data.map` would run
    run = Resumed(module.options, make_trainer(limit_val_batches=0), data)
    assert differences(checkpoint, run.recipe) == {}
    other = Resumed(module.options, make_trainer(), make_data())
    assert set(differences(checkpoint, other.recipe)) == {
        "trainer.limit_val_batches",
        "data.max_val_examples",
    }


@pytest.mark.parametrize("kind", [V1Module, v1lit.V1DataModule])
def test_every_argument_is_among_the_options(kind: Any) -> None:
    made = kind(BackboneConfig("qwen2_5_vl"))
    assert set(made.options) == set(inspect.signature(kind).parameters)


@pytest.mark.parametrize(
    "given", [{}, {"backbone": BackboneConfig("qwen2_5_vl")}], ids=["alone", "backbone given"]
)
def test_a_module_is_loaded_from_a_checkpoint_without_a_trainer(given: Any, trained: Any) -> None:
    module, path = trained()
    loaded = V1Module.load_from_checkpoint(path, **given)
    assert loaded.options == {
        **module.options,
        **({} if not given else {"backbone": module.options["backbone"]}),
    }
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[name]), name


def test_new_options_may_be_given_to_load_from_checkpoint_but_no_other_model(trained: Any) -> None:
    _, path = trained()
    loaded = V1Module.load_from_checkpoint(path, optimizer=NEW, map_location="cpu", weights_only=True)
    assert loaded.optimizer_config == NEW
    with pytest.raises(RecipeChangedError, match=r"model.pointer.normalize was false and is true"):
        V1Module.load_from_checkpoint(path, pointer=PointerConfig(normalize=True))
