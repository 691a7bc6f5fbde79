"""The average of the weights: what a run validates, writes and resumes with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.curves import Setting, largest_difference, train_on
from helpers.forked import run_ranks
from lightning import Callback, Trainer
from torch import nn

from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig, SourceConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.errors import OptionError
from v1lit.training.averaging import Averages, averages_of
from v1lit.training.config import OptimizerConfig
from v1lit.training.groups import places
from v1lit.training.module import V1Module
from v1lit.training.named_state import parameter_names, to_named, to_numbered
from v1lit.training.optimizer import build_optimizer
from v1lit.training.saved_state import read_checkpoint

pytestmark = pytest.mark.dependencies

DECAY = 0.7
VARIED = OptimizerConfig(
    lr=1e-3, ema_decay=DECAY, parts={"vision": {"lr": 3e-4}, "pointer": {"lr": 2e-3}}, layer_decay=0.8
)
Weights = dict[str, torch.Tensor]


def weights(module: nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def alike(one: Weights, other: Any) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


class Look(Callback):
    """Notes the weights after every step, and those that validation sees."""

    def __init__(self) -> None:
        self.steps: list[Weights] = []
        self.validated: list[Weights] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        self.steps.append(weights(module))

    def on_validation_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self.validated.append(weights(module))


@pytest.fixture
def train(make_data: Any, make_trainer: Any) -> Callable[..., tuple[V1Module, Trainer, Look]]:
    def run(
        steps: int, resume: Path | None = None, optimizer: OptimizerConfig = VARIED, **options: Any
    ) -> tuple[V1Module, Trainer, Look]:
        module, look = V1Module(BackboneConfig("qwen2_5_vl"), optimizer=optimizer), Look()
        options = {"limit_val_batches": 1, "val_check_interval": 2, **options}
        trainer = make_trainer(max_steps=steps, callbacks=[look], **options)
        trainer.fit(module, datamodule=make_data(), ckpt_path=resume, weights_only=True if resume else None)
        return module, trainer, look

    return run


def average_by_hand(steps: list[Weights]) -> list[Weights]:
    found = [steps[0]]
    for step in steps[1:]:
        found.append({name: DECAY * found[-1][name] + (1 - DECAY) * value for name, value in step.items()})
    return found


def test_the_average_is_that_of_a_loop_by_hand_and_the_run_validates_and_ends_with_it(
    train: Any, tmp_path: Path
) -> None:
    module, trainer, look = train(4)
    expected = average_by_hand(look.steps)
    for found, wanted in ((look.validated[0], expected[1]), (look.validated[1], expected[3])):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, msg=name)
    assert not alike(look.validated[1], look.steps[3])
    assert alike(look.validated[1], weights(module))
    # Training went on from the trained weights after the validation.
    _, _, plain = train(4, optimizer=OptimizerConfig(**{**vars(VARIED), "ema_decay": None}))
    assert all(alike(one, other) for one, other in zip(look.steps, plain.steps, strict=True))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    opened = V1Module.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    assert alike(weights(opened), look.validated[1])


def test_a_checkpoint_amid_training_has_the_average_and_resumes_bit_by_bit(
    train: Any, tmp_path: Path
) -> None:
    path = tmp_path / "amid.ckpt"

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(path)

    class SaveAsItValidates(Callback):
        def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"validated-{trainer.global_step}.ckpt")

    module, trainer, look = train(5)
    trainer_options = {"limit_val_batches": 1, "val_check_interval": 2}
    again = V1Module(BackboneConfig("qwen2_5_vl"), optimizer=VARIED)
    again_trainer = trainer.__class__(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, default_root_dir=str(tmp_path), max_steps=5,
        callbacks=[Save(), SaveAsItValidates()], **trainer_options,
    )  # fmt: skip
    again_trainer.fit(again, datamodule=trainer.datamodule)
    expected = average_by_hand(look.steps)
    for name, value in expected[2].items():
        torch.testing.assert_close(read_checkpoint(path)["state_dict"][name], value, msg=name)
    for saved in (path, tmp_path / "validated-2.ckpt"):
        resumed, resumed_trainer, after = train(5, resume=saved)
        assert alike(after.steps[-1], look.steps[4]), saved
        assert alike(weights(resumed), weights(module)), saved
        ours, theirs = averages_of(resumed_trainer), averages_of(trainer)
        assert ours is not None
        assert theirs is not None
        assert ours.held
        for one, other in zip(ours.parameters, theirs.parameters, strict=True):
            assert torch.equal(ours.state[one]["other"], theirs.state[other]["other"])


def test_by_names_the_average_and_the_moments_of_a_weight_stay_apart() -> None:
    module = nn.Linear(2, 2)
    optimizer = build_optimizer(module.named_parameters(), VARIED)
    module(torch.ones(2)).sum().backward()
    optimizer.step()
    tensors, rest = to_named(optimizer.state_dict(), parameter_names(optimizer, module))
    back = to_numbered(rest, list(tensors), lambda stored, _: tensors[stored])
    keys = [{key for values in one["state"].values() for key in values} for one in back["optimizers"]]
    assert keys == [{"step", "exp_avg", "exp_avg_sq"}, {"other"}]


def test_weights_of_bfloat16_are_refused() -> None:
    with pytest.raises(OptionError, match=r"ema_decay is 0.9; weight is of bfloat16"):
        Averages(nn.Linear(2, 2).bfloat16().named_parameters(), 0.9)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_rates_are_those_of_a_loop_by_hand(name: Any) -> None:
    """One optimizer of torch for every parameter, with its own rate."""
    config = OptimizerConfig(name=name, **{k: v for k, v in vars(VARIED).items() if k != "name"})
    torch.manual_seed(0)
    ours, theirs = V1Module(BackboneConfig("qwen2_5_vl")), V1Module(BackboneConfig("qwen2_5_vl"))
    ours.configure_model()
    theirs.configure_model()
    found = places(ours.model, config)
    optimizer = build_optimizer(ours.model.named_parameters(), config, found)
    named = dict(theirs.model.named_parameters())
    hidden = {
        n
        for n, p in named.items()
        if name == "muon" and p.ndim == 2 and "embed" not in n and "lm_head" not in n
    }
    loop: list[torch.optim.Optimizer] = []
    for own, p in named.items():
        if own in hidden:
            rate = found[own].rate(config)
            loop.append(torch.optim.Muon([p], lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
        elif p.requires_grad:
            loop.append(
                torch.optim.AdamW([p], lr=found[own].rate(config), betas=(0.9, 0.95), weight_decay=0.0)
            )
    for step in range(2):
        for n, p in ours.model.named_parameters():
            gradient = torch.sin(p.detach() * 100 + step)
            p.grad, named[n].grad = gradient, gradient.clone()
        optimizer.step()
        for one in loop:
            one.step()
    for n, p in ours.model.named_parameters():
        torch.testing.assert_close(p, named[n], rtol=1e-5, atol=1e-7, msg=n)


@pytest.mark.slow
def test_two_ranks_of_fsdp2_have_the_rates_and_the_average_of_one_process(scenes: Path) -> None:
    setting = Setting(
        scenes,
        optimizer={**vars(VARIED), "weight_decay": 0.1},
        module={"freeze": ["*.layers.0.*"]},
        trainer={"limit_val_batches": 1.0, "val_check_interval": 2, "check_val_every_n_epoch": None},
    )
    one = train_on(setting, "auto", 1, accumulate=2)
    two = train_on(setting, "fsdp2", 2)
    trained = train_on(
        replace(setting, optimizer={**setting.optimizer, "ema_decay": None}), "auto", 1, accumulate=2
    )
    assert largest_difference(trained[0].weights, one[0].weights) > 3e-4
    for curve in two:
        assert curve.norms == pytest.approx(one[0].norms, rel=1e-5)
        assert largest_difference(curve.weights, one[0].weights) < 3e-5
        assert curve.val["val/loss"] == pytest.approx(one[0].val["val/loss"], rel=1e-5)


def _sharded_run(
    scenes: Path, folder: Path, steps: int, save: int | None, resume: str | None
) -> dict[str, Any]:
    """One rank's part; returns its own parts of the weights at the end."""
    module = V1Module(BackboneConfig("qwen2_5_vl"), optimizer=replace(VARIED, schedule="constant"))

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == save:
                trainer.save_checkpoint(folder / "amid.ckpt")

    trainer = Trainer(
        accelerator="cpu", strategy="fsdp2", devices=2, max_steps=steps, logger=False, callbacks=[Save()],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        num_sanity_val_steps=0, limit_val_batches=1, val_check_interval=2, check_val_every_n_epoch=None,
        default_root_dir=str(folder),
    )  # fmt: skip
    data = V1DataModule(
        BackboneConfig("qwen2_5_vl"), source=SourceConfig("shards", str(scenes)), batch_size=2, num_workers=0,
        encoding=EncodingConfig(coordinates=False),
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    return {name: p.detach().to_local().numpy().copy() for name, p in module.model.named_parameters()}


@pytest.mark.slow
def test_ranks_of_fsdp2_resume_bit_by_bit_and_their_folder_opens_as_the_average(
    scenes: Path, tmp_path: Path
) -> None:
    whole = run_ranks(2, _sharded_run, scenes, tmp_path, 5, 3, None)
    resumed = run_ranks(2, _sharded_run, scenes, tmp_path, 5, None, str(tmp_path / "amid.ckpt"))
    for one, other in zip(whole, resumed, strict=True):
        assert one.keys() == other.keys()
        assert all((one[name] == other[name]).all() for name in one)
    # Three steps end with the average that the folder has as its weights.
    ended = run_ranks(2, _sharded_run, scenes, tmp_path, 3, None, None)
    opened = V1Module.load_from_checkpoint(tmp_path / "amid.ckpt")
    for name, parameter in opened.model.named_parameters():
        parts = [rank[name].ravel() for rank in ended]
        assert sorted(np.concatenate(parts)) == sorted(parameter.detach().numpy().ravel()), name
