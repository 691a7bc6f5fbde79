"""Checks of a parsed recipe that types cannot express, made before model, data and Trainer exist."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.accelerators import AcceleratorRegistry

from v1lit.backbones.config import BackboneConfig
from v1lit.cli.errors import UserError, nearest
from v1lit.cli.recipe import COMMAND_LINE, Recipe
from v1lit.cli.schema import MOST_NAMED, dataclasses_of
from v1lit.cli.trainer_arguments import refuse_arguments, refuse_arguments_here, usable_strategies
from v1lit.data.config import SourceConfig
from v1lit.data.encode.mapping import ExampleMap
from v1lit.data.sources.registry import check_source


def check_values(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Values that need no look at the machine or at any file; raises UserError."""
    for key, kind, values in dataclasses_of(config):
        try:
            made = kind(**values)
            if isinstance(made, BackboneConfig):
                _check_backbone(recipe, made)
            if isinstance(made, SourceConfig):
                check_source(made)
        except ValueError as error:
            raise UserError(_placed(recipe, key, str(error))) from error
    if config["data"]["map"] is not None:
        try:
            ExampleMap(config["data"]["map"])
        except ValueError as error:
            raise UserError(_placed(recipe, "data.map", str(error))) from error
    _check_name(
        recipe, config, "trainer.accelerator", ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
    )
    refuse_arguments(recipe, config["trainer"])
    _check_name(recipe, config, "trainer.strategy", usable_strategies())


def check_surroundings(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """What the recipe needs from this machine: devices, files, weights; raises UserError."""
    _check_device(recipe, config)
    refuse_arguments_here(recipe, config["trainer"])
    resume = config["run"]["resume"]
    if resume not in (None, "last", "auto") and not Path(resume).exists():
        raise UserError(f"run.resume is {resume!r} ({recipe.origin('run.resume')}): there is no such file")
    backbone = BackboneConfig(**config["model"]["backbone"])
    if backbone.weights != "tiny":
        from v1lit.backbones.load import check_weights
        from v1lit.backbones.processor import load_processor

        # No weight is loaded. It costs a second or two and spares the import of a data set for nothing.
        check_weights(backbone)
        load_processor(backbone)


def _check_backbone(recipe: Recipe, config: BackboneConfig) -> None:
    from v1lit.backbones.load import check_backbone_config
    from v1lit.backbones.registry import list_backbones

    known = list_backbones()
    if config.name not in known:
        where = recipe.origin("model.backbone.name")
        raise UserError(
            f"model.backbone.name is {config.name!r} ({where}){nearest(config.name, known)}\n"
            f"allowed: {', '.join(known)}"
        )
    check_backbone_config(config)


def _check_name(recipe: Recipe, config: Mapping[str, Any], key: str, allowed: list[str]) -> None:
    group, name = key.split(".")
    value = config[group][name]
    if isinstance(value, str) and value not in allowed:
        more = f" and {len(allowed) - MOST_NAMED} more" if len(allowed) > MOST_NAMED else ""
        raise UserError(
            f"{key} is {value!r} ({recipe.origin(key)}){nearest(value, allowed)}\n"
            f"allowed: {', '.join(allowed[:MOST_NAMED])}{more}"
        )


def _check_device(recipe: Recipe, config: Mapping[str, Any]) -> None:
    usable = [
        name
        for name in AcceleratorRegistry.available_accelerators()
        if AcceleratorRegistry[name]["accelerator"].is_available()
    ]
    if {"cuda", "mps"} & set(usable):
        usable.append("gpu")
    wanted = config["trainer"]["accelerator"]
    if isinstance(wanted, str) and wanted not in ("auto", *usable):
        raise UserError(
            f"trainer.accelerator is {wanted!r} ({recipe.origin('trainer.accelerator')}), "
            f"but PyTorch finds no such device on this machine\nfound: {', '.join(usable)}"
        )


def _placed(recipe: Recipe, group: str, message: str) -> str:
    """`message` about a group, with the key in front that it is about and the file where that stands.

    Of the keys that the message names, that is one from the command line before one from a file, then the
    deepest, then the one named first.
    """
    short = group.removeprefix("model.")
    message = re.sub(rf"(?<![\w.]){re.escape(short)}\.(?=\w)", f"{group}.", message)
    words = re.findall(r"\w+", message)
    keys = [key for key in recipe.origins if key.startswith(f"{group}.") and not _last(key).isdigit()]
    inside = [key for key in keys if _last(key) in words]

    def rank(key: str) -> tuple[bool, int, int]:
        return recipe.origins[key] == COMMAND_LINE, key.count("."), -words.index(_last(key))

    key = max(inside, key=rank, default=group)
    first, _, rest = message.partition("\n")
    said, colon, problem = first.partition(": ")
    if colon and f"{key}.".startswith(f"{said}."):
        first = problem
    text = first if key in first else f"{key}: {first}"
    return f"{text} ({recipe.origin(key)})" + (f"\n{rest}" if rest else "")


def _last(key: str) -> str:
    return key.rpartition(".")[2]
