"""Loggers get the sweep as their group; what a recipe says itself stays."""

from __future__ import annotations

from typing import Any

import pytest

from v1lit.sweep.loggers import grouped


def logger(kind: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": init_args}


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        (
            logger("WandbLogger", project="p", offline=True),
            logger("WandbLogger", group="it", name="a", project="p", offline=True),
        ),
        (logger("WandbLogger", group="mine"), logger("WandbLogger", group="mine", name="a")),
        (
            logger("MLFlowLogger", tags={"team": "vision"}),
            logger("MLFlowLogger", run_name="a", tags={"sweep": "it", "team": "vision"}),
        ),
        (
            logger("TensorBoardLogger", save_dir="tb"),
            logger("TensorBoardLogger", name="it", version="a", save_dir="tb"),
        ),
        (
            [logger("CSVLogger", save_dir="x"), logger("WandbLogger")],
            [logger("CSVLogger", save_dir="x"), logger("WandbLogger", group="it", name="a")],
        ),
    ],
)  # fmt: skip
def test_a_logger_gets_the_sweep_as_its_group(given: Any, becomes: Any) -> None:
    assert grouped(given, "it", "a") == becomes


@pytest.mark.parametrize(
    "given", [None, True, False, logger("CSVLogger", save_dir="x"), [logger("CSVLogger")]]
)
def test_other_loggers_stay_as_they_are(given: Any) -> None:
    assert grouped(given, "it", "a") is None
