"""What a rank says of itself before a run: versions, recipe, data, clock, disk, and whom it can reach."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("v1lit", "torch", "lightning", "transformers")


@dataclass(frozen=True)
class Facts:
    """Everything in which ranks may differ though they should not; plain data."""

    versions: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, str] = field(default_factory=dict)
    """Value, as text, by key; empty without a recipe."""
    shards: dict[str, str] = field(default_factory=dict)
    """Digits that stand for the content, by what it is of."""
    device: str = ""
    """Kind of the device that this rank computes on."""
    free: int | None = None
    """Bytes that are free where checkpoints are written; None where that is not known."""
    skew: float = 0.0
    """Seconds by which the clock is ahead of rank 0's."""
    unreachable: list[str] = field(default_factory=list)
    """Machines that could not be reached from this one, each with the reason."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_this_process(
        cls, recipe: Mapping[str, str] | None = None, shards: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> Facts:  # fmt: skip
        """What can be said without asking another rank.

        Args:
            recipe: of the run, resolved.
            shards: digits of their content, where they are there already.
            folder: of the run's checkpoints; it need not be there yet.
        """
        free = None if folder is None else free_bytes(folder)
        return cls(versions(), dict(recipe or {}), dict(shards or {}), device_kind(), free)


def versions() -> dict[str, str]:
    """What two ranks must have alike for their results, or their messages to each other, to be the same."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if torch.version.cuda is not None:
        found["CUDA of torch"] = torch.version.cuda
    if torch.cuda.is_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def device_kind() -> str:
    """The name of the device that this process would compute on."""
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        return torch.cuda.get_device_name(local % torch.cuda.device_count())
    return f"CPU ({platform.machine()})"


def free_bytes(folder: Path) -> int | None:
    """Free bytes where `folder` is, or will be."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None
