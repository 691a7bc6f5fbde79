"""`model.begin_from`: training begins from all weights of an exported model, without its optimizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from v1lit.backbones.adapters.config import NONE, AdapterConfig
from v1lit.backbones.adapters.folder import adapter_folder
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.folder import check_exported, read_config
from v1lit.backbones.load import checkpoint_config
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.tiny import tiny_tokenizer
from v1lit.errors import OptionError
from v1lit.parallel.fill import fill
from v1lit.pointer.config import PointerConfig
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.model_config import PointAndCopyConfig
from v1lit.revisit.config import RevisitConfig
from v1lit.training.folder_strategy import FolderStrategy
from v1lit.training.resuming import BEGIN_FROM, CHANGES, Change

GROUP, _, FIELD = BEGIN_FROM.partition(".")
NO_SIZES = ("dtype", "torch_dtype", "_name_or_path", "transformers_version", "architectures", "use_cache")
"""Names in a config that say nothing of the weights; with them all that has to do with attention kernels."""


def build_model(
    backbone: BackboneConfig,
    pointer: PointerConfig,
    revisit: RevisitConfig,
    begin_from: str | None = None,
    strategy: FolderStrategy | None = None,
    adapter: AdapterConfig = NONE,
) -> PointAndCopyModel:
    """A model with the weights of `backbone`, or all of those of an exported model; seed torch before.

    Args:
        backbone: its options.
        pointer: its options.
        revisit: its options.
        begin_from: folder of the exported model.
        strategy: that divides the model over ranks; without one it lies on the CPU.
        adapter: options of adapters, which have weights of the backbone below them.

    Raises as `load_backbone` and `check_begin_from`, and ValueError for weights of the export that are
    missing, unexpected or of another shape, by name.
    """
    if begin_from is not None:
        check_begin_from(begin_from, backbone, pointer, revisit)
        refuse_adapter(begin_from, backbone, adapter)
    if strategy is not None:
        return strategy.build(backbone, pointer, revisit, begin_from, adapter)
    model = PointAndCopyModel.build(backbone, pointer, revisit, empty=begin_from is not None, adapter=adapter)
    if begin_from is not None:
        fill(model, backbone, "cpu", begin_from=begin_from)
    return model


def refuse_adapter(folder: str, backbone: BackboneConfig, adapter: AdapterConfig) -> None:
    """Raise OptionError for adapters, of which a folder cannot say on what weights they were trained."""
    if adapter or adapter_folder(backbone.weights) is not None:
        why = (
            "adapters are trained beside model.backbone.weights, with which they are opened later\n"
            "train them from there, or without begin_from"
        )
        raise OptionError(FIELD, folder, why, GROUP)


def check_begin_from(
    folder: str, backbone: BackboneConfig, pointer: PointerConfig, revisit: RevisitConfig
) -> None:
    """Look at the config of an exported model and at the headers of its weights, and load none of them.

    Raises OptionError unless it is one, whole, of the same family, sizes and options as the model of the
    arguments.
    """
    try:
        check_exported(Path(folder))
        held = PointAndCopyConfig(**read_config(Path(folder)))
    except ValueError as error:
        raise OptionError(FIELD, folder, str(error), GROUP) from error
    wanted = PointAndCopyConfig(
        _backbone_config(backbone), backbone.name, pointer=asdict(pointer), revisit=asdict(revisit)
    )
    was, now = dict(_compared(held)), dict(_compared(wanted))
    other = {key: (was[key], now[key]) for key in was.keys() & now.keys() if was[key] != now[key]}
    if "model.backbone.name" in other:  # all else follows
        other = {key: values for key, values in other.items() if key == "model.backbone.name"}
    if other:
        named = "; ".join(f"{key} is {old!r} there and {new!r} here" for key, (old, new) in _first(other))
        why = f"it is another model: {named}\ngive a model of the same backbone and options, or change these"
        raise OptionError(FIELD, folder, why, GROUP)


def _first(other: Mapping[str, tuple[Any, Any]], most: int = 3) -> list[tuple[str, tuple[Any, Any]]]:
    return sorted(other.items())[:most]


def _backbone_config(backbone: BackboneConfig) -> Any:
    family = get_backbone(backbone.name)
    if backbone.weights == "tiny":
        return family.tiny_config(tiny_tokenizer(family.chat.stop, family.chat.single), **backbone.tiny)
    return checkpoint_config(family, backbone.weights)


def _compared(config: PointAndCopyConfig) -> Iterator[tuple[str, Any]]:
    """What weights depend on: options of a recipe by their keys, sizes by their names in `config.json`."""
    options = {"backbone": {"name": config.family}, "pointer": config.pointer, "revisit": config.revisit}
    for key, change in CHANGES.items():
        group, _, name = key.removeprefix("model.").partition(".")
        if change is Change.MODEL and name in options.get(group, {}):
            yield key, options[group][name]
    yield from _sizes(
        json.loads(json.dumps(config.backbone_config.to_dict(), default=str)), "backbone_config"
    )


def _sizes(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _sizes(value, f"{prefix}.{name}")
        elif name not in NO_SIZES and "attn" not in name:
            yield f"{prefix}.{name}", value
