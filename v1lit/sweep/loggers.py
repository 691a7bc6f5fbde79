"""Loggers of a recipe, changed such that all trials of a sweep stand together where they log to."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any


def grouped(logger: Any, sweep: str, trial: str) -> Any:
    """`trainer.logger` of a recipe with the sweep as group of its loggers; None where it stays as it is.

    wandb gets `group` and `name`, MLflow a tag and `run_name`, TensorBoard a folder for each trial in that of
    the sweep. What the recipe says itself stays.
    """
    loggers = logger if isinstance(logger, list) else [logger]
    changed = [_grouped(one, sweep, trial) for one in loggers]
    if changed == loggers:
        return None
    return changed if isinstance(logger, list) else changed[0]


def _grouped(logger: Any, sweep: str, trial: str) -> Any:
    if not isinstance(logger, Mapping) or "class_path" not in logger:
        return logger
    kind = str(logger["class_path"]).rpartition(".")[2]
    known: dict[str, dict[str, Any]] = {
        "WandbLogger": {"group": sweep, "name": trial},
        "MLFlowLogger": {"run_name": trial, "tags": {"sweep": sweep}},
        "TensorBoardLogger": {"name": sweep, "version": trial},
    }
    own = known.get(kind, {})
    result = deepcopy(dict(logger))
    given = result.get("init_args") or {}
    if own:
        result["init_args"] = {**own, **given}
    if "tags" in own:
        result["init_args"]["tags"] = {**own["tags"], **(given.get("tags") or {})}
    return result
