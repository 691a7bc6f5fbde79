"""Arguments of Lightning's Trainer that cannot work in a run: refused before anything is made.

`docs/trainer.md` says of every argument what it does here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.plugins.environments import (
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from v1lit.cli.errors import UserError
from v1lit.errors import OptionError
from v1lit.training.deepspeed_strategy import DEEPSPEED
from v1lit.training.folder_strategy import FolderStrategy

Values = Mapping[str, Any]
"""The recipe's `trainer`, as it was parsed."""

LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
    "reload_dataloaders_every_n_epochs": 0,
}
"""Lightning takes less than this and fails later, or does the opposite of what was meant."""

SPAWNED = "its processes keep the model that they train to themselves, and nothing would be left to export"
FOREIGN = "v1lit has strategies of its own that divide weights over devices, and exports what they save"
OWN = "use fsdp2, hsdp or fsdp2_tp"
STRATEGIES = {
    "ddp_spawn": (SPAWNED, "use ddp"),
    "ddp_fork": (SPAWNED, "use ddp"),
    "ddp_notebook": (SPAWNED, "use ddp, or auto on one device"),
    "fsdp": (FOREIGN, OWN),
    "deepspeed": (FOREIGN, f"{OWN}, or {DEEPSPEED}"),
    "model_parallel": (FOREIGN, OWN),
    "xla": ("v1lit has not been made for TPUs", "use auto, ddp or single_device"),
    "single_xla": ("v1lit has not been made for TPUs", "use auto, ddp or single_device"),
}
"""Beginnings of the names of strategies that are refused: why, and what to use."""


class Refusal(NamedTuple):
    """Of an argument: which values cannot work, why, and what to use instead."""

    argument: str
    applies: Callable[[Any, Values], bool]
    why: str
    instead: str


REFUSED = (
    Refusal("limit_test_batches", lambda value, _: value is not None,
            "a run trains and validates, and never tests",
            "trainer.limit_val_batches shortens validation, run.report_examples the report"),
    Refusal("limit_predict_batches", lambda value, _: value is not None,
            "a run does not call Trainer.predict",
            "run.report_examples says for how many examples the report generates"),
    Refusal("use_distributed_sampler", lambda value, _: value is False,
            "the data module itself gives every rank other examples, without a sampler",
            "leave it out; to have all ranks read the same is not possible"),
    Refusal("model_registry", lambda value, _: value is not None,
            "the run's own checkpoints are not uploaded",
            "leave it out, and upload the folder model/ of the run when it has ended"),
    Refusal("gradient_clip_algorithm", lambda value, others: value and not others["gradient_clip_val"],
            "nothing is clipped without trainer.gradient_clip_val",
            "set that, such as --trainer.gradient_clip_val=1.0"),
    Refusal("val_check_interval", lambda value, _: value == 0 and value is not False,
            "that is no interval",
            "give a number of batches; to leave validation out, set trainer.limit_val_batches=0"),
    Refusal("min_steps", lambda value, others: value is not None and 0 <= others["max_steps"] < value,
            "that is more than trainer.max_steps, which ends the run before",
            "raise trainer.max_steps, or lower trainer.min_steps"),
    Refusal("min_epochs", lambda value, others: value and 0 <= (others["max_epochs"] or -1) < value,
            "that is more than trainer.max_epochs, which ends the run before",
            "raise trainer.max_epochs, or lower trainer.min_epochs"),
    Refusal("profiler", lambda value, _: value == "xla",
            "v1lit has not been made for TPUs",
            "allowed: simple, advanced, pytorch"),
    Refusal("precision", lambda value, _: str(value).startswith("transformer-engine"),
            "it puts other layers into the model, which cannot be exported",
            "allowed: 32-true, bf16-mixed, bf16-true, 16-mixed, 16-true, 64-true"),
)  # fmt: skip

REFUSED_HERE = (
    Refusal("precision", lambda value, others: str(value) in ("16", "16-mixed") and _on_cpu(others),
            "a CPU does not do that",
            "use bf16-mixed or 32-true"),
    Refusal("devices", lambda value, others: _on_cpu(others) and not _is_number_of_processes(value),
            "CPUs are not counted or numbered; for them it is the number of processes",
            "set trainer.devices=1 or more"),
    Refusal("num_nodes", lambda value, _: value > 1 and _is_alone(),
            "nothing says where the other nodes are, so the run would wait for them",
            "start it on every node with srun or torchrun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK"),
)  # fmt: skip


def refuse_arguments(values: Values) -> None:
    """Refuse values of the recipe's `trainer` that cannot work anywhere; raises OptionError."""
    for name, least in LEAST.items():
        value = values[name]
        if isinstance(value, (int, float)) and value < least:
            raise _refused(name, value, "that is too small", f"give {least} or more")
    _refuse_by(REFUSED, values)
    if (reason := _reason_against(name := str(values["strategy"]))) is not None:
        raise _refused("strategy", name, *reason)


def refuse_arguments_here(values: Values) -> None:
    """Refuse values of the recipe's `trainer` that cannot work on this machine.

    Raises OptionError, and UserError for tasks of SLURM that nobody started.
    """
    _refuse_tasks_of_slurm()
    _refuse_by(REFUSED_HERE, values)


def refuse_parts(trainer: Trainer) -> None:
    """Refuse parts of a Trainer, however chosen, that lose the model or change it; raises OptionError."""
    if (kind := type(trainer.precision_plugin).__name__) in (
        "BitsandbytesPrecision",
        "TransformerEnginePrecision",
    ):
        why = "it puts other layers into the model, which cannot be exported"
        raise _refused("plugins", kind, why, "take it away, and set trainer.precision")
    strategy, kind = trainer.strategy, type(trainer.strategy).__name__
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise _refused("strategy", kind, SPAWNED, "use ddp")
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, FolderStrategy)):
        raise _refused(
            "strategy", kind, "v1lit has not been made for it", f"use ddp, or to divide weights {OWN[4:]}"
        )


def usable_strategies() -> list[str]:
    """Names that `trainer.strategy` may have."""
    return ["auto", *(name for name in StrategyRegistry.available_strategies() if not _reason_against(name))]


def _reason_against(name: str) -> tuple[str, str] | None:
    if name == DEEPSPEED:
        return None
    keys = (key for key in STRATEGIES if name == key or name.startswith(f"{key}_"))
    return next((STRATEGIES[key] for key in keys), None)


def _refuse_by(table: Iterable[Refusal], values: Values) -> None:
    for argument, applies, why, instead in table:
        if applies(values[argument], values):
            raise _refused(argument, values[argument], why, instead)


def _refuse_tasks_of_slurm() -> None:
    """SLURM's variables, as a login node or an allocation sets them, make Lightning wait for other tasks."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    # A launcher that is one of SLURM's tasks, and tells its own processes who they are.
    launched = TorchElasticEnvironment.detect()
    if interactive or launched or not tasks.isdigit() or int(tasks) == 1:
        return
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(
            f"SLURM_NTASKS is {tasks}, so this process would be one of {tasks}, but SLURM does not say how "
            "many run on each node\n"
            "start it with srun and --ntasks-per-node=N, the number of trainer.devices; for one process in "
            "an allocation, set SLURM_JOB_NAME=interactive"
        )
    if "SLURM_PROCID" not in os.environ:
        raise UserError(
            f"SLURM_NTASKS is {tasks}, but this process is none of its tasks: SLURM_PROCID is missing\n"
            "start it with srun; for one process in an allocation, set SLURM_JOB_NAME=interactive"
        )


def _on_cpu(values: Values) -> bool:
    wanted = values["accelerator"]
    has_gpu = CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    return wanted == "cpu" or (wanted == "auto" and not has_gpu)


def _is_number_of_processes(value: object) -> bool:
    return value == "auto" or (str(value).isdecimal() and int(str(value)) > 0)


def _is_alone() -> bool:
    """Whether nobody but this process says that there are others."""
    if any(name in os.environ for name in ("MASTER_ADDR", "NODE_RANK", "GROUP_RANK")):
        return False
    kinds = (SLURMEnvironment, TorchElasticEnvironment, LSFEnvironment, MPIEnvironment)
    return not any(kind.detect() for kind in kinds)


def _refused(argument: str, value: object, why: str, instead: str) -> OptionError:
    return OptionError(argument, value, f"{why}\n{instead}", "trainer")
