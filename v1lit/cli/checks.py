"""Checks of a parsed recipe that types cannot express, made before model, data and Trainer exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.accelerators import AcceleratorRegistry

from v1lit.backbones.adapters.config import AdapterConfig
from v1lit.backbones.adapters.folder import naming_base, resolved
from v1lit.backbones.adapters.layers import check_layers
from v1lit.backbones.adapters.library import check_libraries
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.load import check_backbone_config, check_weights
from v1lit.backbones.processor import load_processor
from v1lit.cli.recipe import Recipe
from v1lit.cli.schema import dataclasses_of
from v1lit.cli.trainer_arguments import refuse_arguments, refuse_arguments_here, usable_strategies
from v1lit.data.config import SourceConfig
from v1lit.data.encode.mapping import ExampleMap
from v1lit.data.sources.registry import check_source
from v1lit.errors import OptionError, name_allowed
from v1lit.pointer.config import PointerConfig
from v1lit.revisit.config import RevisitConfig
from v1lit.training.begin_from import check_begin_from, refuse_adapter


def check_values(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Values that need no look at the machine or at any file; raises UserError."""
    trainer = config["trainer"]
    for group, kind, values in dataclasses_of(config):
        with recipe.options(group):
            options = kind(**values)
        with recipe.options():
            if isinstance(options, BackboneConfig):
                check_backbone_config(options)
            if isinstance(options, SourceConfig):
                check_source(options)
    with recipe.options():
        if config["data"]["map"] is not None:
            ExampleMap(config["data"]["map"])
        accelerators = ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
        _check_name("accelerator", trainer["accelerator"], accelerators)
        refuse_arguments(trainer)
        _check_name("strategy", trainer["strategy"], usable_strategies())


def check_surroundings(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """What the recipe needs from this machine: devices, files, weights; raises UserError."""
    resume = config["run"]["resume"]
    with recipe.options():
        _check_device(config["trainer"]["accelerator"])
        refuse_arguments_here(config["trainer"])
        if resume not in (None, "last", "auto") and not Path(resume).exists():
            raise OptionError("resume", resume, "there is no such file", "run")
    with recipe.options():
        model = config["model"]
        made_of = BackboneConfig(**model["backbone"]), AdapterConfig(**model["adapter"])
        backbone, adapter, found = resolved(*made_of)
        check_libraries(adapter)
    if backbone.weights != "tiny":
        # No weight is loaded. It costs a second or two and spares the import of a data set for nothing.
        with naming_base(found):
            check_weights(backbone)
            load_processor(backbone)
    if adapter:
        with recipe.options():
            check_layers(backbone, adapter)
    if model["begin_from"] is not None:
        pointer, revisit = PointerConfig(**model["pointer"]), RevisitConfig(**model["revisit"])
        with recipe.options():
            refuse_adapter(model["begin_from"], made_of[0], made_of[1])
            check_begin_from(model["begin_from"], backbone, pointer, revisit)


def _check_name(argument: str, value: object, allowed: Iterable[str]) -> None:
    if isinstance(value, str) and value not in allowed:
        raise OptionError(argument, value, name_allowed(value, allowed), "trainer")


def _check_device(wanted: object) -> None:
    usable = [
        name
        for name in AcceleratorRegistry.available_accelerators()
        if AcceleratorRegistry[name]["accelerator"].is_available()
    ]
    if {"cuda", "mps"} & set(usable):
        usable.append("gpu")
    if isinstance(wanted, str) and wanted not in ("auto", *usable):
        why = f"PyTorch finds no such device on this machine\nfound: {', '.join(usable)}"
        raise OptionError("accelerator", wanted, why, "trainer")
