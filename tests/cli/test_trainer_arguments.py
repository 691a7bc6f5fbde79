"""Every argument of Lightning's Trainer works in a run, or is refused before anything is made."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
)
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from v1lit.backbones.config import BackboneConfig
from v1lit.cli.callback_checks import check_callbacks, check_validation
from v1lit.cli.errors import UserError
from v1lit.cli.recipe import compose
from v1lit.cli.recipe_cli import fill_in
from v1lit.cli.trainer_arguments import (
    LEAST,
    REFUSED,
    REFUSED_HERE,
    refuse_arguments,
    refuse_arguments_here,
    refuse_parts,
    usable_strategies,
)
from v1lit.errors import OptionError
from v1lit.pointer.config import PointerConfig
from v1lit.training.checkpoints import LastCheckpoint
from v1lit.training.module import V1Module
from v1lit.training.run import trainer_defaults

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trainer.md"
ARGUMENTS = {
    name: parameter.default
    for name, parameter in inspect.signature(Trainer.__init__).parameters.items()
    if name != "self"
}


def rows() -> dict[str, str]:
    """What the page's table says of every argument."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            names, text = line.strip("| ").split(" | ", 1)
            found |= dict.fromkeys(re.findall(r"`(\w+)`", names), text)
    return found


def test_the_page_says_of_every_argument_of_lightning_what_it_does_here() -> None:
    assert set(rows()) == set(ARGUMENTS)


def test_what_the_code_refuses_the_page_says_is_refused() -> None:
    for refusal in (*REFUSED, *REFUSED_HERE):
        assert "refused" in rows()[refusal.argument] or refusal.argument.startswith("min_"), refusal.argument
    assert set(LEAST) <= set(ARGUMENTS)


def arguments(**given: Any) -> dict[str, Any]:
    recipe = compose("tiny_qwen", [f"--trainer.{name}={value}" for name, value in given.items()])
    return {**ARGUMENTS, **recipe.config["trainer"]}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS", "SLURM_JOB_NAME", "MASTER_ADDR", "NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({"strategy": "ddp_spawn"}, "use ddp"),
        ({"strategy": "ddp_fork_find_unused_parameters_true"}, "use ddp"),
        ({"strategy": "ddp_notebook"}, "use ddp"),
        ({"strategy": "fsdp"}, "use fsdp2"),
        ({"strategy": "deepspeed_stage_2_offload"}, "use fsdp2"),
        ({"strategy": "xla"}, "use auto"),
        ({"limit_test_batches": 1}, "run.report_examples"),
        ({"limit_predict_batches": 0.5}, "run.report_examples"),
        ({"use_distributed_sampler": "false"}, "leave it out"),
        ({"model_registry": "mine"}, "upload"),
        ({"gradient_clip_algorithm": "value", "gradient_clip_val": "null"}, "gradient_clip_val=1.0"),
        ({"val_check_interval": 0}, "limit_val_batches=0"),
        ({"min_steps": 8, "max_steps": 4}, "raise trainer.max_steps"),
        ({"min_epochs": 3, "max_epochs": 2}, "raise trainer.max_epochs"),
        ({"profiler": "xla"}, "simple, advanced, pytorch"),
        ({"precision": "transformer-engine"}, "bf16-mixed"),
        ({"accumulate_grad_batches": 0}, "give 1 or more"),
        ({"check_val_every_n_epoch": 0}, "give 1 or more"),
        ({"gradient_clip_val": -1.0}, "give 0 or more"),
        ({"log_every_n_steps": -1}, "give 0 or more"),
        ({"num_sanity_val_steps": -2}, "give -1 or more"),
    ],
)
def test_what_cannot_work_anywhere_is_refused_with_what_to_use(given: dict[str, Any], instead: str) -> None:
    with pytest.raises(OptionError) as caught:
        refuse_arguments(arguments(**given))
    assert caught.value.key == f"trainer.{next(iter(given))}"
    assert instead in caught.value.why.split("\n")[1]


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({"precision": "16-mixed"}, "bf16-mixed"),
        ({"devices": -1}, "trainer.devices=1 or more"),
        ({"devices": "[0,1]"}, "trainer.devices=1 or more"),
        ({"devices": "many"}, "trainer.devices=1 or more"),
        ({"num_nodes": 2}, "MASTER_ADDR"),
    ],
)
def test_what_cannot_work_on_cpus_or_alone_is_refused(given: dict[str, Any], instead: str) -> None:
    with pytest.raises(OptionError, match=re.escape(instead)):
        refuse_arguments_here(arguments(accelerator="cpu", **given))


def test_what_works_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for strategy in ("auto", "ddp", "ddp_find_unused_parameters_true", "single_device", "deepspeed_zero3"):
        assert strategy in usable_strategies()
        refuse_arguments(arguments(strategy=strategy))
    assert "ddp_fork" not in usable_strategies()
    for given in (
        {"devices": 2},
        {"devices": "auto"},
        {"min_steps": 4, "max_steps": 4},
        {"gradient_clip_val": 0},
        {"val_check_interval": 0.5},
        {"val_check_interval": "00:00:10:00"},
        {"num_sanity_val_steps": -1},
    ):
        refuse_arguments(arguments(**given))
        refuse_arguments_here(arguments(accelerator="cpu", **given))
    monkeypatch.setenv("MASTER_ADDR", "node1")
    refuse_arguments_here(arguments(num_nodes=2))


def test_tasks_of_slurm_that_nobody_started_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(UserError, match=r"SLURM_NTASKS is 4.*\n.*srun.*SLURM_JOB_NAME=interactive"):
        refuse_arguments_here(arguments())
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    with pytest.raises(UserError, match="SLURM_PROCID is missing"):
        refuse_arguments_here(arguments())
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    refuse_arguments_here(arguments())


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (DDPStrategy(start_method="fork"), "keep the model that they train to themselves"),
        (ModelParallelStrategy(), "ModelParallelStrategy.; v1lit has not been made for it"),
    ],
)
def test_a_strategy_that_is_given_by_its_class_is_refused_as_well(strategy: Any, words: str) -> None:
    trainer = Trainer(accelerator="cpu", devices=1, strategy=strategy, logger=False)
    with pytest.raises(OptionError, match=words):
        refuse_parts(trainer)


# ------------------------------------------------------------------ what callbacks watch


def watching(*callbacks: Callback, **options: Any) -> Trainer:
    defaults = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": None}
    return Trainer(**{**defaults, **options}, callbacks=list(callbacks))


def module(**options: Any) -> V1Module:
    return V1Module(BackboneConfig("qwen2_5_vl"), **options)


def test_a_metric_that_is_not_logged_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"ModelCheckpoint watches 'val/region_iou'.*'val/forced_region_iou'"):
        check_callbacks(watching(ModelCheckpoint(monitor="val/region_iou")), module())
    with pytest.raises(
        UserError, match=r"EarlyStopping watches 'val_loss'.*'val/loss'.*\nlogged: val/loss, "
    ):
        check_callbacks(watching(EarlyStopping(monitor="val_loss")), module())


@pytest.mark.parametrize(
    "name", ["val/loss", "val/loss_joint", "val/forced_region_iou", "train/loss", "loss"]
)
def test_one_that_is_logged_is_not(name: str) -> None:
    check_callbacks(watching(EarlyStopping(monitor=name)), module())


def test_which_parts_of_the_loss_there_are_depends_on_the_loss() -> None:
    separate = module(pointer=PointerConfig(loss="separate", z_weight=0.0))
    check_callbacks(watching(EarlyStopping(monitor="val/loss_text")), separate)
    with pytest.raises(UserError, match="val/loss_joint"):
        check_callbacks(watching(EarlyStopping(monitor="val/loss_joint")), separate)
    with pytest.raises(UserError, match="val/loss_text"):
        check_callbacks(watching(EarlyStopping(monitor="val/loss_text")), module())


def test_a_measurement_that_comes_after_the_first_validation_is_refused() -> None:
    often = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    late, early = EarlyStopping(monitor="train/text_accuracy"), EarlyStopping(monitor="train/loss")
    with pytest.raises(
        UserError, match=r"after the first validation, at step 2, .* every 10 .*\n.*steps=2 or"
    ):
        check_callbacks(watching(late, log_every_n_steps=10, **often), module())
    check_callbacks(watching(late, log_every_n_steps=2, **often), module())
    check_callbacks(watching(early, log_every_n_steps=10, **often), module())


def test_beside_an_own_callback_every_name_may_be_logged() -> None:
    class Mine(Callback):
        pass

    check_callbacks(watching(EarlyStopping(monitor="mine"), Mine()), module())
    check_callbacks(watching(EarlyStopping(monitor="mine", strict=False)), module())


def test_without_validation_nothing_can_watch_it() -> None:
    trainer = watching(EarlyStopping(monitor="val/loss"))
    with pytest.raises(UserError, match=r"'val/loss', but nothing is validated: .*no validation examples\n"):
        check_validation(trainer, module(), has_val=False)
    check_validation(trainer, module(), has_val=True)
    without = watching(EarlyStopping(monitor="val/loss"), limit_val_batches=0)
    with pytest.raises(UserError, match=r"trainer.limit_val_batches is 0"):
        check_validation(without, module(), has_val=True)
    check_validation(watching(EarlyStopping(monitor="train/loss")), module(), has_val=False)


@pytest.mark.parametrize(
    ("callback", "instead"),
    [
        (BatchSizeFinder(), "data.batch_size"),
        (LearningRateFinder(), "model.optimizer.lr"),
        (GradientAccumulationScheduler({0: 2}), "trainer.accumulate_grad_batches"),
        (ModelPruning("l1_unstructured"), "take it away"),
        (EMAWeightAveraging(), "model.optimizer.ema_decay"),
    ],
)
def test_a_callback_that_cannot_work_is_refused_with_what_to_use(callback: Callback, instead: str) -> None:
    with pytest.raises(UserError, match=rf"has a {type(callback).__name__}, but .*\n.*{instead}"):
        check_callbacks(watching(callback), module())


def test_a_checkpoint_on_exceptions_stands_beside_those_of_the_run(tmp_path: Path) -> None:
    mine = OnExceptionCheckpoint(tmp_path)
    config = {**ARGUMENTS, "callbacks": [mine]}
    kinds = [type(one) for one in fill_in(config, trainer_defaults(tmp_path))["callbacks"]]
    assert kinds.index(ModelCheckpoint) < kinds.index(LastCheckpoint) < kinds.index(OnExceptionCheckpoint)
    dev_run = fill_in({**config, "fast_dev_run": True}, trainer_defaults(tmp_path))["callbacks"]
    assert not any(isinstance(one, LastCheckpoint) for one in dev_run)


@pytest.mark.parametrize("callback", [LearningRateMonitor(), DeviceStatsMonitor()])
def test_who_writes_to_loggers_needs_one(callback: Callback) -> None:
    with pytest.raises(UserError, match=f"{type(callback).__name__} writes to loggers"):
        check_callbacks(watching(callback), module())
