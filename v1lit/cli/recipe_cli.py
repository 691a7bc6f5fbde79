"""A composed recipe on LightningCLI: parsed by jsonargparse, checked, turned into model, data and Trainer."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    ProgressBar,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from omegaconf.errors import OmegaConfBaseException
from yaml.representer import RepresenterError

from v1lit.backbones.config import BackboneConfig
from v1lit.cli import checks
from v1lit.cli.attempts import noted
from v1lit.cli.callback_checks import check_callbacks, check_validation
from v1lit.cli.environment import describe_environment
from v1lit.cli.errors import RunFailed, UserError, two_lines
from v1lit.cli.failures import Told, explain, in_own_code
from v1lit.cli.parser_reasons import reason_in
from v1lit.cli.recipe import Recipe, flattened
from v1lit.cli.recipe_values import absolute_paths, prepare_values
from v1lit.cli.run_folder import forget_attempt, is_first, run_folder, save_recipe
from v1lit.cli.schema import check_keys, leaves, with_all_groups, wrong_value
from v1lit.cli.stopped import stoppable, tell_stopped
from v1lit.cli.trainer_arguments import refuse_parts
from v1lit.cli.tried_versions import newer_line
from v1lit.cli.yaml_texts import PutAside
from v1lit.cluster.launched import refuse_other_size
from v1lit.cluster.store import RanksMissing
from v1lit.data.datamodule import V1DataModule
from v1lit.errors import MISTAKE, OptionError, did_you_mean
from v1lit.revisit.config import RevisitConfig
from v1lit.training.attempts import NoProgressError
from v1lit.training.checkpoints import LastCheckpoint, checkpoint_to_resume, newest_checkpoint
from v1lit.training.config import RunConfig
from v1lit.training.module import V1Module
from v1lit.training.quiet import quiet
from v1lit.training.results import ResultsIncompleteError
from v1lit.training.resuming import RecipeChangedError, Resumed, check_resume
from v1lit.training.run import run_training, trainer_defaults
from v1lit.training.stopping import RunStopped, StopRequests


class RecipeCLI(LightningCLI):
    """Model, data and Trainer of a recipe; a mistake in it is a UserError, before weights are loaded."""

    folder: Path
    """The folder of the run, while it trains."""
    requests: StopRequests
    """Ctrl-C and signals, while it trains."""

    def __init__(self, recipe: Recipe, parse_only: bool = False) -> None:
        self.recipe = recipe
        self.parse_only = parse_only
        find_modules_beside(recipe.path)
        with quiet():
            super().__init__(
                V1Module,
                V1DataModule,
                run=False,
                save_config_callback=None,  # the run saves its recipe itself, with versions and revision
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False, "dump_header": None},
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunConfig, "run")
        # jsonargparse links values, not groups: one link per field.
        for group, kind in (("backbone", BackboneConfig), ("revisit", RevisitConfig)):
            for field in dataclasses.fields(kind):
                parser.link_arguments(f"model.{group}.{field.name}", f"data.{group}.{field.name}")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        prepare_values(self.recipe)
        check_keys(self.recipe)
        config, aside = with_all_groups(self.recipe.config), PutAside()
        aside.hide(config)
        with self.recipe.options():
            try:
                self.config = parser.parse_object(config)
            except ArgumentError as error:
                raise _parser_problem(self.recipe.config, str(error)) from error
            except OmegaConfBaseException as error:
                raise _interpolation_problem(self.recipe.config, error) from error
        for key, value in self.config.items():
            self.config[key] = aside.restored(value)
        config = self.config.as_dict()
        checks.check_values(self.recipe, config)
        if not self.parse_only:
            checks.check_surroundings(self.recipe, config)

    def instantiate_classes(self) -> None:
        """Left to `train`, where the run has its folder."""

    def _instantiate(self) -> None:
        try:
            super().instantiate_classes()
        except OptionError:
            raise
        except (ValueError, MisconfigurationException) as error:
            reason = in_own_code(error) or reason_in(str(error)) or two_lines(str(error))
            raise UserError(reason) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The recipe's Trainer, with the run's own loggers and callbacks where the recipe names none."""
        every = self.config["run"]["checkpoint_every"]
        defaults = trainer_defaults(self.folder, every, self.requests)
        self.filled_in: list[Callback] = defaults["callbacks"]
        kwargs |= fill_in(self.config_init["trainer"], defaults)
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise UserError(f"trainer: {two_lines(str(error))}") from error

    def model_and_data(self) -> tuple[V1Module, V1DataModule]:
        """Both as the recipe has them, without a Trainer and without a run's folder."""
        with self.recipe.options():
            objects = self.parser.instantiate(self.config)
        return objects["model"], objects["data"]

    def resolved(self) -> str:
        """The recipe as YAML that runs by itself: no parts, no interpolations, every default spelled out."""
        return self._dumped(self.config.as_dict())

    def recorded(self) -> str:
        """`resolved`, with paths that mean the same in any current directory."""
        return self._dumped(absolute_paths(self.config.as_dict()))

    def _dumped(self, config: dict[str, Any]) -> str:
        aside = PutAside()
        aside.hide(config)
        del config["data"]["backbone"]  # It follows the model's, and cannot be given.
        try:
            return aside.quoted(self.parser.dump(self.parser.parse_object(config), skip_unset=False))
        except RepresenterError as error:
            what = ": ".join(map(str, error.args))
            raise UserError(
                f"an argument of a class in the recipe has a default that YAML has no word for: {what}\n"
                "give it as a text, a number, true, false or null"
            ) from error

    def train(self, argv: Sequence[str]) -> int:
        """Train and report; `argv` is what followed `v1lit run`. Returns the exit code.

        That is 0 or, of a run that was stopped, 130 after Ctrl-C and 143 after a signal.
        """
        run = RunConfig(**self.config.as_dict()["run"])
        with (
            quiet(),
            self.recipe.options(),
            run_folder(run, self.recipe.name) as self.folder,
            StopRequests() as self.requests,
        ):
            self._doing = "before it began"
            new = is_first() and not any(self.folder.iterdir())
            try:
                with noted(self.folder, run.resume), stoppable(self.requests, self._when_stopped):
                    self._train(argv, run)
            except RunStopped as stop:
                return tell_stopped(stop, self.folder, argv, self._run_name)
            except (ResultsIncompleteError, NoProgressError):
                raise  # it says what is kept, and how the rest is made
            except Exception as error:
                told = explain(error)
                mistake = told is not None and told.code == MISTAKE
                if new and (mistake or isinstance(error, RanksMissing)) and not self._steps:
                    forget_attempt(self.folder)
                if (failed := self._failed(told)) is None:
                    raise
                raise failed from error
        return 0

    def rehearse(self) -> None:
        """Make model, data and Trainer of a run that begins later, to find what is wrong with them."""
        run = RunConfig(**self.config.as_dict()["run"])
        self.folder, self.requests = Path(run.folder) / str(run.name), StopRequests()
        with quiet(), self.recipe.options():
            self._build()

    def _build(self) -> None:
        """Make model, data and Trainer, none of which has done anything yet."""
        self._instantiate()
        refuse_parts(self.trainer)
        with self.recipe.options():
            refuse_other_size(self.trainer.num_devices, self.trainer.num_nodes)
        check_callbacks(self.trainer, self.model, self.datamodule)

    def _train(self, argv: Sequence[str], run: RunConfig) -> None:
        self._build()
        self._check_resume(run)
        self._doing = "while its data were prepared"
        self.prepare_data()
        self._check_resume(run)  # now also the order of the data, which may not have been there
        self._doing = ""
        header = describe_environment(argv, seed=self.config["seed_everything"])
        save_recipe(self.folder, header + self.recorded())
        if line := newer_line():
            rank_zero_info(line)
        recipe = flattened(yaml.safe_load(self.resolved()))
        run_training(self.model, self.datamodule, self.trainer, run, self.folder, recipe)

    def _check_resume(self, run: RunConfig) -> None:
        """Refuse what a resumed run cannot change, before anything is loaded; raises UserError."""
        path = checkpoint_to_resume(run.resume, self.folder)
        if path is None:
            return
        try:
            check_resume(path, Resumed(self.model.options, self.trainer, self.datamodule))
        except RecipeChangedError as error:
            origins = ", ".join(dict.fromkeys(self.recipe.origin(key) for key in error.keys))
            text = str(error).replace("\n", f" ({origins})\n", 1) if origins else str(error)
            raise UserError(text) from error

    def _when_stopped(self) -> str:
        """Where the run was when someone stopped it at once."""
        if self._doing:
            return self._doing
        status, steps = self.trainer.state.status, self.trainer.global_step
        if status == TrainerStatus.FINISHED:
            return f"in the report, after all {steps} steps"
        return f"at once, after step {steps}" if steps else "before the first step"

    @property
    def _run_name(self) -> str:
        """Under which the run is resumed; a stage is one of its folders."""
        return (self.folder if self.recipe.stage is None else self.folder.parent).name

    @property
    def _steps(self) -> int:
        """Optimizer steps, as far as there is a Trainer that could have made any."""
        return 0 if self._doing else self.trainer.global_step

    def _failed(self, told: Told | None) -> RunFailed | None:
        """A failure with the checkpoint to resume from; None where the exception stays as it is."""
        newest = newest_checkpoint(self.folder)
        if self._doing or (told is not None and told.code == MISTAKE and not self._steps):
            return None  # nothing has been trained
        left = f"the newest checkpoint is {newest}" if newest is not None and is_first() else ""
        if left:
            left += f", to resume from with --run.name={self._run_name} --run.resume=last"
        if told is None:  # its traceback comes below
            sys.stderr.write(f"{left}\n" if left else "")
            return None
        rank = "" if is_first() else f"rank {self.trainer.global_rank}: "
        what, *remedy = two_lines(told.message).split("\n")
        more = "; ".join([*remedy, left] if left else remedy)
        return RunFailed(f"{rank}{what}\n{more}".rstrip(), told.code)

    def prepare_data(self) -> None:
        """Make the shards: only then is it known whether the best checkpoint can be chosen by validation."""
        environment = getattr(self.trainer.strategy, "cluster_environment", None)
        from_outside = environment is not None and environment.creates_processes_externally
        if self.trainer.local_rank == 0 and not from_outside:  # else the Trainer does it, and the others wait
            self.datamodule.prepare_data()
            if self.datamodule.has_train:
                self.datamodule.check_limits(self.trainer)
        if not self.datamodule.has_train:
            return
        if not self.datamodule.has_val:
            callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
            best = [callback for callback in self.filled_in if isinstance(callback, ModelCheckpoint)]
            callbacks[:] = [callback for callback in callbacks if callback not in best]
        check_validation(self.trainer, self.model, self.datamodule.has_val)


def find_modules_beside(recipe: Path) -> None:
    """Let class paths name modules that lie beside the recipe or in the current directory.

    Behind all installed ones, whose names they cannot take.
    """
    for folder in (str(recipe.resolve().parent), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)


def fill_in(config: Mapping[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Trainer arguments of a recipe completed by `defaults`.

    A logger, a checkpoint callback or a progress bar that the recipe names or switches off stays as it is;
    `last.ckpt` is kept beside the recipe's own checkpoints.
    """
    callbacks = config["callbacks"] or []
    callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    # Keeps no checkpoint in place of the run's own, and must not be the first, which is asked for the best.
    after = [callback for callback in callbacks if isinstance(callback, OnExceptionCheckpoint)]
    theirs = [callback for callback in callbacks if callback not in after]
    off = {
        LastCheckpoint: config["enable_checkpointing"] is False or bool(config["fast_dev_run"]),
        Checkpoint: config["enable_checkpointing"] is False,
        ProgressBar: config["enable_progress_bar"] is False,
    }

    def wanted(callback: Callback) -> bool:
        kind = next((kind for kind in off if isinstance(callback, kind)), type(callback))
        return not off.get(kind) and not any(isinstance(other, kind) for other in theirs)

    ours = [callback for callback in defaults["callbacks"] if wanted(callback)]
    filled: dict[str, Any] = {
        name: config[name] or defaults[name] for name in ("default_root_dir", "enable_model_summary")
    }
    if config["logger"] in (None, True) and not config["barebones"]:
        filled["logger"] = defaults["logger"]
    return filled if config["barebones"] else {**filled, "callbacks": [*theirs, *ours, *after]}


def _parser_problem(config: Mapping[str, Any], message: str) -> Exception:
    """What jsonargparse said as an error of ours, where it says which key it is about."""
    about = re.search(r'Parser key "([^"]+)"', message)
    if about is None:
        return UserError(message)
    value = _as_written(config, about[1])
    if "${" in str(value) and (interpolated := re.search(r"(?:Given|Got) value: (.*)", message)):
        value = interpolated[1]
    return wrong_value(about[1], value, message)


def _interpolation_problem(config: Mapping[str, Any], error: Exception) -> OptionError:
    """The error about `${...}` that leads nowhere, or round in a circle."""
    key = str(getattr(error, "full_key", None) or "")
    text = str(error).strip().splitlines()[0]
    missing = re.search(r"Interpolation key '([^']+)' not found", text)
    hint = did_you_mean(missing[1], [name for name, _ in leaves()]) if missing else ""
    if missing and missing[1] in os.environ:
        hint = f"; the environment variable is written ${{oc.env:{missing[1]}}}"
    return OptionError(key, _as_written(config, key), f"{text}{hint}")


def _as_written(config: Any, key: str) -> object:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config
