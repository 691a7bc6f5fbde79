"""A composed recipe on LightningCLI: parsed by jsonargparse, checked, turned into model, data and Trainer."""

from __future__ import annotations

import dataclasses
import re
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from omegaconf.errors import OmegaConfBaseException

from v1lit.backbones.config import BackboneConfig
from v1lit.cli import checks
from v1lit.cli.errors import UserError, nearest, two_lines
from v1lit.cli.environment import describe_environment
from v1lit.cli.recipe import Recipe
from v1lit.cli.run_folder import make_run_folder, name_run_folder
from v1lit.cli.schema import check_keys, leaves, with_all_groups, wrong_value
from v1lit.data.datamodule import V1DataModule
from v1lit.training.config import RunConfig
from v1lit.training.module import V1Module


class RecipeCLI(LightningCLI):
    """Model, data and Trainer of a recipe; every user's mistake is a UserError, raised before weights are loaded."""

    def __init__(self, recipe: Recipe, parse_only: bool = False) -> None:
        self.recipe = recipe
        self.parse_only = parse_only
        super().__init__(
            V1Module,
            V1DataModule,
            run=False,
            save_config_callback=None,  # the run saves its recipe itself, with versions and revision
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunConfig, "run")
        # jsonargparse links values, not groups: one link per field.
        for field in dataclasses.fields(BackboneConfig):
            parser.link_arguments(f"model.backbone.{field.name}", f"data.backbone.{field.name}")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        check_keys(self.recipe)
        try:
            self.config = parser.parse_object(with_all_groups(self.recipe.config))
        except ArgumentError as error:
            raise UserError(_parser_problem(self.recipe, str(error))) from error
        except (OmegaConfBaseException, RecursionError) as error:
            raise UserError(_interpolation_problem(self.recipe, error)) from error
        checks.check_values(self.recipe, self.config.as_dict())

    def before_instantiate_classes(self) -> None:
        if not self.parse_only:
            checks.check_surroundings(self.recipe, self.config.as_dict())
            run = self.config.as_dict()["run"]
            self.folder = name_run_folder(RunConfig(**run), self.recipe.name)

    def instantiate_classes(self) -> None:
        if self.parse_only:
            return
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            raise UserError(str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        kwargs.setdefault("default_root_dir", self.config.get("trainer.default_root_dir") or str(self.folder))
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise UserError(f"trainer: {two_lines(str(error))}") from error

    def resolved(self) -> str:
        """The whole recipe as YAML that runs by itself: parts in place, interpolations resolved, defaults spelled out."""
        text: str = self.parser.dump(self.config, skip_unset=False)
        return text

    def train(self, argv: Sequence[str]) -> dict[str, float]:
        """Train and report; `argv` is what followed `v1lit run`."""
        from v1lit.training.run import run_training

        make_run_folder(self.folder)
        header = describe_environment(argv, seed=self.config["seed_everything"])
        resolved = header + self.resolved()
        return run_training(
            self.model, self.datamodule, self.trainer, self.config_init["run"], Path(self.folder), resolved
        )


def _parser_problem(recipe: Recipe, message: str) -> str:
    """jsonargparse's message in our words, where it says which key it is about."""
    found = re.search(r'Parser key "([^"]+)"', message)
    if found is None:
        return message
    key = found[1]
    given = re.search(r"(?:Given|Got) value: (.*)", message)
    text = wrong_value(recipe, key, _as_written(recipe, key, given[1] if given else None))
    reason = re.search(r"Option '.*' is not accepted|Expected a dot import path string: .*|Unable to load.*", message)
    return f"{text}: {reason[0]}" if reason else text


def _as_written(recipe: Recipe, key: str, parsed: str | None) -> object:
    value: Any = recipe.config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return parsed if isinstance(value, str) and "${" in value else value


def _interpolation_problem(recipe: Recipe, error: Exception) -> str:
    """Message for `${...}` that leads nowhere, or round in a circle."""
    if isinstance(error, RecursionError):
        return "some ${...} in the recipe refer to each other in a circle"
    key = str(getattr(error, "full_key", None) or "")
    text = str(error).strip().splitlines()[0]
    missing = re.search(r"Interpolation key '([^']+)' not found", text)
    hint = nearest(missing[1], [name for name, _ in leaves()]) if missing else ""
    return f"{key} is {_as_written_raw(recipe, key)!r} ({recipe.origin(key)}): {text}{hint}"


def _as_written_raw(recipe: Recipe, key: str) -> object:
    value: Any = recipe.config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
